/* Loads a model and continues a text, printing it as it comes.
 * usage: generate_c MODEL_DIRECTORY PROMPT */
#include <stdio.h>
#include <string.h>
#include <xlstm/xlstm.h>

static int32_t print(const char* text, size_t length, void* user) {
  (void)user;
  fwrite(text, 1, length, stdout);
  return fflush(stdout); /* anything but 0 ends the text */
}

int main(int argc, char** argv) {
  xlstm_model* model = NULL;
  int32_t prompt[512];
  size_t count = 0;
  xlstm_generate_options options = xlstm_generate_defaults();
  options.max_tokens = 100;
  options.temperature = 0; /* greedy: the most likely token every time */

  if (argc != 3) {
    fprintf(stderr, "usage: generate_c MODEL_DIRECTORY PROMPT\n");
    return 1;
  }
  xlstm_status status = xlstm_model_load(argv[1], NULL, &model);
  if (!status) status = xlstm_tokenize(model, argv[2], strlen(argv[2]), 1, prompt, 512, &count);
  if (!status && count <= 512)
    status = xlstm_generate(model, NULL, prompt, count, &options, print, NULL, NULL);
  if (status) fprintf(stderr, "%s\n", xlstm_last_error());
  xlstm_model_free(model);
  return status ? 1 : 0;
}
