/* Reads samples from the standard input, MODEL_INPUTS floats each, and writes MODEL_OUTPUTS floats each. */

#include <stdio.h>

#include "model.h"

int main(void) {
  static float input[MODEL_INPUTS], output[MODEL_OUTPUTS];
  while (fread(input, sizeof(float), MODEL_INPUTS, stdin) == MODEL_INPUTS) {
    model_run(input, output);
    if (fwrite(output, sizeof(float), MODEL_OUTPUTS, stdout) != MODEL_OUTPUTS) return 1;
  }
  return ferror(stdin) != 0;
}
