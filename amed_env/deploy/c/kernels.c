/* Kernels of a quantized network: no dependency but <stdint.h> and <math.h>, no heap.

   Values are codes, (code - zero) * scale, or floats. A code takes a byte, or `bits` bits of `code - least`. Weights are a stream of bits, lowest bit first, one
   output channel after the other, each channel in the order height, width, input channel. Layers read and write
   channels last. Sums are exact in 32 bits. */

typedef struct {
  float scale, inverse; /* of one step, and 1 / scale */
  int32_t zero, low, high;
  int32_t bits, least; /* that a code takes in memory; 8 and 0 for a byte */
} format_t;

typedef struct {
  int32_t height, width, channels;             /* of what is read */
  int32_t out_height, out_width, out_channels; /* of what is written */
  int32_t kernel_height, kernel_width, stride_height, stride_width, pad_top, pad_left, dilation_height, dilation_width;
  int32_t groups;
} shape_t;

typedef struct {
  shape_t shape;
  const uint8_t *weights;  /* codes of `bits` bits */
  const uint8_t *mirrored; /* a bit for each channel whose largest weight is +2^(bits-1); 0 if there is none */
  int32_t bits;
  const EPILOGUE_T *multiplier; /* of each output channel: see `layer` */
  const BIAS_T *bias;           /* of each output channel; 0 if there is none */
  int32_t shift;
  int32_t addend_multiplier;
  float step; /* scale of what is read */
  format_t read;
} layer_t;

static uint8_t code_at(const void *values, const format_t *format, int32_t at) {
  const uint8_t *codes = values;
#if PACKED
  if (format->bits < 8) {
    uint32_t bits = (uint32_t)format->bits, first = (uint32_t)at * bits, shift = first & 7;
    uint32_t two = codes[first >> 3];
    if (shift + bits > 8) two |= (uint32_t)codes[(first >> 3) + 1] << 8;
    return (uint8_t)((two >> shift & ((1u << bits) - 1u)) + (uint32_t)format->least);
  }
#endif
  (void)format;
  return codes[at];
}

static void keep(uint8_t *codes, const format_t *format, int32_t at, uint8_t code) {
#if PACKED
  if (format->bits < 8) {
    uint32_t bits = (uint32_t)format->bits, first = (uint32_t)at * bits, shift = first & 7;
    uint32_t mask = ((1u << bits) - 1u) << shift, two = (uint32_t)(code - format->least) << shift;
    uint8_t *byte = codes + (first >> 3);
    byte[0] = (uint8_t)((byte[0] & ~mask) | two);
    if (shift + bits > 8) byte[1] = (uint8_t)((byte[1] & ~(mask >> 8)) | two >> 8);
    return;
  }
#endif
  (void)format;
  codes[at] = code;
}

static float value_of(const void *values, const format_t *format, int32_t at) {
  if (format) return (float)((int32_t)code_at(values, format, at) - format->zero) * format->scale;
  return ((const float *)values)[at];
}

/* kernel: layer convert */
/* Rounds half to even. Comparisons are such that NaN becomes the lowest code and no integer overflows. */
static uint8_t code_of(float value, const format_t *format) {
  float code = rintf(value * format->inverse + (float)format->zero);
  if (!(code > (float)format->low)) return (uint8_t)format->low;
  return (uint8_t)(code > (float)format->high ? format->high : (int32_t)code);
}

/* kernel: layer add */
static float clamped(float value, float low, float high) {
  return value < low ? low : value > high ? high : value;
}

/* kernel: layer pool */
/* A sum of floats, in blocks of 16 values, 256, and so on, as the evaluator adds what a mean is over. */
typedef struct {
  float level[4];
  int32_t count;
} sum_t;

static void add_to(sum_t *sum, float value) {
  int32_t i, block = 16;
  sum->level[0] += value;
  sum->count++;
  for (i = 0; i < 3 && sum->count % block == 0; i++, block *= 16) {
    sum->level[i + 1] += sum->level[i];
    sum->level[i] = 0.0f;
  }
}

static float mean_of(const sum_t *sum) {
  return (((sum->level[0] + sum->level[1]) + sum->level[2]) + sum->level[3]) / (float)sum->count;
}

/* kernel: layer */
static void unpack(const layer_t *layer, int32_t channel, int32_t count, int8_t *row) {
  uint32_t bits = (uint32_t)layer->bits, mask = (1u << bits) - 1u, at = (uint32_t)channel * (uint32_t)count * bits;
  int32_t zero = 1 << (bits - 1), i;
  if (layer->mirrored && layer->mirrored[channel >> 3] >> (channel & 7) & 1) zero -= 1;
  for (i = 0; i < count; i++, at += bits) {
    const uint8_t *byte = layer->weights + (at >> 3);
    uint32_t two = byte[0] | (uint32_t)byte[1] << 8;
    row[i] = (int8_t)((int32_t)(two >> (at & 7) & mask) - zero);
  }
}

/* Sum of products of one output channel at one place; what lies outside the input is zero. `codes_of`, if it is not 0,
   has the layer's code for each code that is stored. */
static int32_t sum_of(const layer_t *layer, const uint8_t *input, const format_t *stored, const uint8_t *codes_of,
                      const int8_t *row, int32_t first, int32_t depth, int32_t y, int32_t x) {
  const shape_t *s = &layer->shape;
  int32_t zero = layer->read.zero, sum = 0, i, j, k;
  for (i = 0; i < s->kernel_height; i++) {
    int32_t from_y = y * s->stride_height + i * s->dilation_height - s->pad_top;
    if (from_y < 0 || from_y >= s->height) continue;
    for (j = 0; j < s->kernel_width; j++) {
      int32_t from_x = x * s->stride_width + j * s->dilation_width - s->pad_left;
      int32_t from = (from_y * s->width + from_x) * s->channels + first;
      const int8_t *weights = row + (i * s->kernel_width + j) * depth;
      if (from_x < 0 || from_x >= s->width) continue;
#if REMAPPED
      if (codes_of) {
        for (k = 0; k < depth; k++) sum += ((int32_t)codes_of[code_at(input, stored, from + k)] - zero) * weights[k];
        continue;
      }
#endif
#if PACKED
      if (stored->bits < 8) {
        uint32_t bits = (uint32_t)stored->bits, mask = (1u << bits) - 1u, at = (uint32_t)from * bits;
        for (k = 0; k < depth; k++, at += bits) {
          uint32_t shift = at & 7, two = input[at >> 3];
          if (shift + bits > 8) two |= (uint32_t)input[(at >> 3) + 1] << 8;
          sum += ((int32_t)(two >> shift & mask) + stored->least - zero) * weights[k];
        }
        continue;
      }
#endif
      for (k = 0; k < depth; k++) sum += ((int32_t)input[from + k] - zero) * weights[k];
    }
  }
  (void)stored;
  (void)codes_of;
  return sum;
}

/* A convolution or linear layer on codes that are stored in a format; `remapped` if that is not the layer's own. `addend`
   may be 0; either `codes` or `values` is written, or with `mean` the mean of the values of each channel. */
static void layer(const layer_t *layer, const uint8_t *input, const format_t *stored, int32_t remapped, const void *addend,
                  const format_t *addend_format, float low, float high, const format_t *written, uint8_t *codes,
                  float *values, int32_t mean) {
  static int8_t row[LARGEST_ROW];
  const uint8_t *codes_of = 0;
  const shape_t *s = &layer->shape;
  int32_t depth = s->channels / s->groups, in_group = s->out_channels / s->groups, channel, y, x;
  int32_t count = s->kernel_height * s->kernel_width * depth;
#if REMAPPED
  static uint8_t table[256];
  if (remapped) {
    for (x = 0; x < 256; x++) table[x] = code_of((float)(x - stored->zero) * stored->scale, &layer->read);
    codes_of = table;
  }
#endif
  (void)remapped;
  for (channel = 0; channel < s->out_channels; channel++) {
    int32_t first = channel / in_group * depth;
    sum_t total = {{0.0f, 0.0f, 0.0f, 0.0f}, 0};
    unpack(layer, channel, count, row);
    for (y = 0; y < s->out_height; y++) {
      for (x = 0; x < s->out_width; x++) {
        int32_t sum = sum_of(layer, input, stored, codes_of, row, first, depth, y, x);
        int32_t at = (y * s->out_width + x) * s->out_channels + channel;
        EPILOGUE
      }
    }
    if (mean) values[channel] = mean_of(&total);
  }
}

/* kernel: convert */
static void convert(const void *source, const format_t *read, const format_t *written, int32_t count, uint8_t *codes,
                    float *values) {
  int32_t i;
  for (i = 0; i < count; i++) {
    float value = value_of(source, read, i);
    if (codes) keep(codes, written, i, code_of(value, written));
    else values[i] = value;
  }
}

/* kernel: move */
/* Loops of `move`: counts, steps and first elements of what is read and written. */
typedef struct {
  int32_t counts[5], source[5], target[5], source_first, target_first;
} loops_t;

static void move(const void *source, const format_t *read, void *target, const format_t *written, const loops_t *loops) {
  const int32_t *n = loops->counts, *s = loops->source, *t = loops->target;
  int32_t a, b, c, d, e;
  for (a = 0; a < n[0]; a++)
    for (b = 0; b < n[1]; b++)
      for (c = 0; c < n[2]; c++)
        for (d = 0; d < n[3]; d++)
          for (e = 0; e < n[4]; e++) {
            int32_t from = loops->source_first + a * s[0] + b * s[1] + c * s[2] + d * s[3] + e * s[4];
            int32_t to = loops->target_first + a * t[0] + b * t[1] + c * t[2] + d * t[3] + e * t[4];
            if (written) keep(target, written, to, code_at(source, read, from));
            else ((float *)target)[to] = ((const float *)source)[from];
          }
}

/* kernel: fill */
static void fill(void *target, const format_t *format, int32_t count) {
  int32_t i;
  for (i = 0; i < count; i++) {
    if (format) keep(target, format, i, (uint8_t)format->zero);
    else ((float *)target)[i] = 0.0f;
  }
}

/* kernel: pool */
/* `divisor`: -1 for the largest value, 0 to divide by the number of values, else what sums are divided by. Windows of
   an adaptive pooling (kernel_height 0) share the input out. */
static void pool(const shape_t *s, const void *source, const format_t *format, int32_t divisor, const format_t *written,
                 uint8_t *codes, float *values) {
  int32_t y, x, c, i, j;
  for (y = 0; y < s->out_height; y++) {
    for (x = 0; x < s->out_width; x++) {
      int32_t top = y * s->stride_height - s->pad_top, left = x * s->stride_width - s->pad_left;
      int32_t bottom = top + (s->kernel_height - 1) * s->dilation_height + 1;
      int32_t right = left + (s->kernel_width - 1) * s->dilation_width + 1;
      int32_t step_y = s->dilation_height, step_x = s->dilation_width;
      if (s->kernel_height == 0) {
        step_y = step_x = 1;
        top = y * s->height / s->out_height;
        bottom = ((y + 1) * s->height + s->out_height - 1) / s->out_height;
        left = x * s->width / s->out_width;
        right = ((x + 1) * s->width + s->out_width - 1) / s->out_width;
      }
      for (c = 0; c < s->channels; c++) {
        sum_t all = {{0.0f, 0.0f, 0.0f, 0.0f}, 0};
        float total = 0.0f, most = 0.0f;
        int32_t number = 0, best = 0, at = (y * s->out_width + x) * s->channels + c;
        for (i = top; i < bottom; i += step_y) {
          if (i < 0 || i >= s->height) continue;
          for (j = left; j < right; j += step_x) {
            int32_t from = (i * s->width + j) * s->channels + c;
            float value;
            if (j < 0 || j >= s->width) continue;
            value = value_of(source, format, from);
            if (number == 0 || value > most) most = value, best = from;
            total += value;
            add_to(&all, value);
            number++;
          }
        }
        if (codes) keep(codes, written, at, code_at(source, format, best));
        else if (divisor < 0) values[at] = most;
        else if (s->kernel_height == 0 && s->out_height * s->out_width == 1) values[at] = mean_of(&all);
        else values[at] = total / (float)(divisor ? divisor : number);
      }
    }
  }
}

/* kernel: add */
static void add(const void *first, const format_t *first_format, const void *second, const format_t *second_format, float low,
                float high, int32_t count, float *values) {
  int32_t i;
  for (i = 0; i < count; i++) {
    float value = value_of(first, first_format, i);
    if (second) value += value_of(second, second_format, i);
    values[i] = clamped(value, low, high);
  }
}
