/* usage: consumer_c MODEL_DIRECTORY */
#include <stdio.h>
#include <xlstm/xlstm.h>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  xlstm_model* model = NULL;
  xlstm_state* state = NULL;
  int32_t ids[16];
  size_t count = 0;
  const float* logits = NULL;
  int failed = xlstm_model_load(argv[1], NULL, &model) != XLSTM_OK ||
               xlstm_tokenize(model, "ROMEO:", 6, 1, ids, 16, &count) != XLSTM_OK ||
               xlstm_state_new(model, &state) != XLSTM_OK ||
               xlstm_eval(model, state, ids, count, &logits) != XLSTM_OK;
  if (failed) {
    fprintf(stderr, "%s\n", xlstm_last_error());
  } else {
    printf("xlstm %s, %zu ids, %d logits\n", xlstm_version(), count, (int)xlstm_vocab_size(model));
    failed = logits == NULL || xlstm_state_token_count(state) != (int64_t)count;
  }
  xlstm_state_free(state);
  xlstm_model_free(model);
  return failed;
}
