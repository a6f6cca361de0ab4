// The cells of raws-labs/xlstm.c, timed: one head of 512, 8 sequences of 64 tokens, one thread. The
// input is one number wide, so nearly all work is that of the cell, as in bench_slstm and
// bench_cells.
//   git clone https://github.com/raws-labs/xlstm.c && cd xlstm.c
//   gcc -std=c99 -O2 -Iinclude THIS_FILE src/slstm.c src/mlstm.c -lm -o /tmp/xlstm_c &&
//   /tmp/xlstm_c
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "mlstm.h"
#include "slstm.h"

enum { kBatch = 8, kTokens = 64, kWidth = 512, kCalls = 3 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float* numbers(int count, float scale) {
  float* values = malloc((size_t)count * sizeof(float));
  if (values == NULL) exit(1);
  for (int i = 0; i < count; ++i) values[i] = scale * ((float)rand() / (float)RAND_MAX - 0.5F);
  return values;
}

static float* input;
static float* output;
static float* scratch;

static double slstm(void) {
  const int state = kBatch * kWidth;
  static float *w, *r, *b, *y, *c, *n, *m;
  if (w == NULL) {
    w = numbers(4 * kWidth, 1), r = numbers(4 * kWidth * kWidth, 0.1F), b = numbers(4 * kWidth, 1);
    y = numbers(state, 0), c = numbers(state, 0), n = numbers(state, 0), m = numbers(state, 0);
  }
  const SlstmParams params = {0};
  const double start = now();
  slstm_eval_f32(input, w, r, b, y, c, n, m, output, scratch, kBatch, kTokens, 1, kWidth, &params);
  return now() - start;
}

static double mlstm(void) {
  static float *w, *b, *y, *c, *n, *m;
  if (w == NULL) {
    w = numbers(4 * kWidth + 2, 1), b = numbers(4 * kWidth + 2, 1);
    y = numbers(kBatch * kWidth, 0), c = numbers(kBatch * kWidth * kWidth, 0);
    n = numbers(kBatch * kWidth, 0), m = numbers(kBatch, 0);
  }
  const MlstmParams params = {0};
  const double start = now();
  mlstm_eval_f32(input, w, b, y, c, n, m, output, scratch, kBatch, kTokens, 1, kWidth, &params);
  return now() - start;
}

static void print(const char* name, double (*cell)(void), double flop_per_token) {
  double least = 1e9;
  for (int call = 0; call < kCalls; ++call) {
    const double time = cell();
    if (time < least) least = time;
  }
  printf("%s: %.2f ms, %.2f GFLOP/s\n", name, 1e3 * least,
         1e-9 * kBatch * kTokens * flop_per_token / least);
}

int main(void) {
  input = numbers(kBatch * kTokens, 1);
  output = numbers(kBatch * kTokens * kWidth, 0);
  scratch = numbers(4 * kWidth + 2, 0);
  print("sLSTM", slstm, 8.0 * kWidth * kWidth);
  // Decay and update of C take 3 operations for each of its numbers, reading it 2.
  print("mLSTM", mlstm, 5.0 * kWidth * kWidth);
  return 0;
}
