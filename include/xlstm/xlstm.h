/* The C interface of xlstm.cpp: load, tokenize, evaluate, keep states, generate.
 *
 * Rules
 * - Handles are opaque. Whoever gets one frees it; freeing NULL does nothing. A state may outlive
 *   its model.
 * - Functions that can fail return a status, XLSTM_OK (0) for success. The message of the last
 *   failure of the calling thread is xlstm_last_error(). On failure outputs are unchanged.
 * - A model runs one forward pass at a time: calls from several threads wait for each other. A
 *   state must not be used by two threads at once.
 * - Text is UTF-8, given with its length in bytes; texts that come back end with a zero byte that
 *   is not counted.
 */
#ifndef XLSTM_XLSTM_H_
#define XLSTM_XLSTM_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xlstm_model xlstm_model; /* weights, configuration, tokenizer */
typedef struct xlstm_state xlstm_state; /* the memory of one sequence */

typedef enum xlstm_status {
  XLSTM_OK = 0,
  XLSTM_INVALID_ARGUMENT = 1, /* a value is out of range or does not fit the others */
  XLSTM_NOT_FOUND = 2,        /* a file, tensor or token does not exist */
  XLSTM_INVALID_FILE = 3,     /* a file breaks its format */
  XLSTM_UNSUPPORTED = 4,      /* valid, but this build cannot do it */
  XLSTM_OUT_OF_MEMORY = 5,    /* a buffer of the size in the message could not be had */
  XLSTM_IO = 6,               /* the operating system refused to read or write */
  XLSTM_INTERNAL = 7          /* an invariant of the library broke: please report it */
} xlstm_status;

/* Message of the calling thread's last failure, "" if there was none. Valid until its next call. */
const char* xlstm_last_error(void);
/* "0.1.0" */
const char* xlstm_version(void);

/* ---- Model ---------------------------------------------------------------------------------- */

/* All zeros are the defaults. */
typedef struct xlstm_load_options {
  int32_t threads;             /* 0: one per physical core */
  int32_t bf16;                /* 1: inputs of matrix products are rounded to bf16; 0: float32 */
  int32_t check_tensors;       /* 1: look for NaN and infinities; reads every byte */
  const char* device;          /* "cpu", "cuda" or "cuda:<index>"; NULL: the CPU */
  const char* const* adapters; /* adapter_count directories of adapters to add; may be NULL */
  const float* adapter_scales; /* their factors; NULL: 1 each */
  size_t adapter_count;
  int32_t prefill;    /* long prompts on a card: 1: in e4m3; 2: in e4m3 by blocks; 0: as all else */
  int32_t packing;    /* packed weights on a card: 1: no; 2: yes; 3: and plain ones; 0: auto */
  int32_t state_bf16; /* states on a card: 1: C of mLSTM cells in bf16; 0: float32 */
} xlstm_load_options;

/* Loads a Hugging Face directory or an NX-AI xlstm_large directory. `options` may be NULL. */
xlstm_status xlstm_model_load(const char* directory, const xlstm_load_options* options,
                              xlstm_model** model);
void xlstm_model_free(xlstm_model* model);

int32_t xlstm_vocab_size(const xlstm_model* model); /* logits per token; 0: a block stack alone */
int32_t xlstm_hidden_size(const xlstm_model* model);
int32_t xlstm_bos_id(const xlstm_model* model); /* -1: none */
int32_t xlstm_is_eos(const xlstm_model* model, int32_t id);
size_t xlstm_state_bytes(const xlstm_model* model); /* memory of one state */

/* Token ids of text. With `add_bos` the BOS token comes first where the checkpoint asks for it.
 * Writes at most `capacity` ids and always the full number to `count`; ids == NULL only counts. */
xlstm_status xlstm_tokenize(const xlstm_model* model, const char* text, size_t length,
                            int32_t add_bos, int32_t* ids, size_t capacity, size_t* count);

/* Text of token ids. Writes at most `capacity` bytes, the closing zero among them, and always the
 * full length without it to `length`; text == NULL only counts. */
xlstm_status xlstm_detokenize(const xlstm_model* model, const int32_t* ids, size_t count,
                              char* text, size_t capacity, size_t* length);

/* ---- State ---------------------------------------------------------------------------------- */

/* An empty state. */
xlstm_status xlstm_state_new(const xlstm_model* model, xlstm_state** state);
/* An independent copy: the way to continue one prompt in several directions. */
xlstm_status xlstm_state_clone(const xlstm_state* state, xlstm_state** copy);
void xlstm_state_free(xlstm_state* state);
/* Back to the empty sequence. */
void xlstm_state_reset(xlstm_state* state);
/* Tokens read so far. */
int64_t xlstm_state_token_count(const xlstm_state* state);
/* Logits [vocab_size] after the last token read, NULL before the first. They belong to the state
 * and hold until it changes. */
const float* xlstm_state_logits(const xlstm_state* state);
/* A state file, whole or absent, that names its model; load replaces the state's content. */
xlstm_status xlstm_state_save(const xlstm_state* state, const char* file);
xlstm_status xlstm_state_load(xlstm_state* state, const char* file);

/* Appends `count` >= 1 tokens to the sequence. `logits` may be NULL; else it gets what
 * xlstm_state_logits() returns. */
xlstm_status xlstm_eval(xlstm_model* model, xlstm_state* state, const int32_t* ids, size_t count,
                        const float** logits);

/* Reads `count` >= 1 vectors [count, hidden_size] instead of embedded tokens, and writes as many:
 * the block stack as a backbone. `outputs` may be `vectors`. */
xlstm_status xlstm_forward_vectors(xlstm_model* model, xlstm_state* state, const float* vectors,
                                   size_t count, float* outputs);

/* ---- Generation ----------------------------------------------------------------------------- */

typedef struct xlstm_generate_options {
  int64_t max_tokens; /* -1: until end of text */
  float temperature;  /* 0: greedy */
  int32_t top_k;      /* 0: off */
  float top_p;        /* 1: off */
  float min_p;        /* 0: off */
  float repeat_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t repeat_last_n; /* tokens the penalties look back on; -1: all */
  uint64_t seed;
  const char* const* stop; /* stop_count strings that end the text; may be NULL */
  size_t stop_count;
  int32_t ignore_eos;
} xlstm_generate_options;

/* The defaults: 128 tokens, temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties. */
xlstm_generate_options xlstm_generate_defaults(void);

/* Gets new text: whole UTF-8 characters, zero-terminated. A result other than 0 ends the text. */
typedef int32_t (*xlstm_text_callback)(const char* text, size_t length, void* user);

typedef enum xlstm_finish { XLSTM_FINISH_STOP = 0, XLSTM_FINISH_LENGTH = 1 } xlstm_finish;

/* Continues `state` by the prompt and generated tokens; afterwards it holds both. With state ==
 * NULL an empty state is used and dropped. An empty prompt continues where the state is, or begins
 * with BOS. `options`, `callback` and `finish` may be NULL. */
xlstm_status xlstm_generate(xlstm_model* model, xlstm_state* state, const int32_t* prompt,
                            size_t count, const xlstm_generate_options* options,
                            xlstm_text_callback callback, void* user, xlstm_finish* finish);

#ifdef __cplusplus
}
#endif
#endif /* XLSTM_XLSTM_H_ */
