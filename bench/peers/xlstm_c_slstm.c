// The sLSTM of raws-labs/xlstm.c, timed: one head of 512, 8 sequences of 64 tokens, one thread. The
// input is one number wide, so nearly all work is the recurrent product, as in bench_slstm.
//   git clone https://github.com/raws-labs/xlstm.c && cd xlstm.c
//   gcc -std=c99 -O2 -Iinclude THIS_FILE src/slstm.c -lm -o /tmp/xlstm_c_slstm &&
//   /tmp/xlstm_c_slstm
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

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

int main(void) {
  const int state = kBatch * kWidth;
  float* input = numbers(kBatch * kTokens, 1);
  float *w = numbers(4 * kWidth, 1), *r = numbers(4 * kWidth * kWidth, 0.1F);
  float *b = numbers(4 * kWidth, 1), *scratch = numbers(4 * kWidth, 0);
  float *y = numbers(state, 0), *c = numbers(state, 0), *n = numbers(state, 0);
  float *m = numbers(state, 0), *output = numbers(kTokens * state, 0);
  const SlstmParams params = {0};
  double least = 1e9;
  for (int call = 0; call < kCalls; ++call) {
    const double start = now();
    slstm_eval_f32(input, w, r, b, y, c, n, m, output, scratch, kBatch, kTokens, 1, kWidth,
                   &params);
    const double time = now() - start;
    if (time < least) least = time;
  }
  printf("%.1f ms, %.2f GFLOP/s\n", 1e3 * least, 8e-9 * kTokens * state * kWidth / least);
  return 0;
}
