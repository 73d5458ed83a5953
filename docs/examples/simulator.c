/* A simulator in C: reads amed-request/1 on standard input, answers amed-answer/1 on standard output.
 *
 * The device does 64 multiply-accumulates of 8 bits in a cycle, twice as many where both operands have at most 4 bits,
 * and reads weights at 64 bits a cycle; 100 MHz. A request has one layer a line, so no JSON library is needed.
 *
 *     cc -O2 -o simulator simulator.c
 *     amed simulate --network digits-cnn --bits 4 --device 'command: ./simulator'
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double field(const char *line, const char *key) {
    char pattern[64];
    snprintf(pattern, sizeof pattern, "\"%s\": ", key);
    const char *found = strstr(line, pattern);
    if (found == NULL) {
        fprintf(stderr, "a layer has no %s: %s", key, line);
        exit(1);
    }
    return strtod(found + strlen(pattern), NULL);
}

int main(void) {
    static char line[1 << 16];
    double total = 0;
    int layers = 0;
    if (fgets(line, sizeof line, stdin) == NULL || strstr(line, "amed-request/1") == NULL) {
        fprintf(stderr, "this program reads amed-request/1\n");
        return 1;
    }
    printf("{\"format\": \"amed-answer/1\", \"layers\": [");
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strncmp(line, "{\"name\": ", 9) != 0) continue;
        double macs = field(line, "m") * field(line, "n") * field(line, "k") * field(line, "groups");
        double weight_bits = field(line, "w_bits"), activation_bits = field(line, "a_bits");
        double compute = macs / (weight_bits <= 4 && activation_bits <= 4 ? 128 : 64);
        double memory = field(line, "weight_elements") * weight_bits / 64;
        double milliseconds = (compute > memory ? compute : memory) / 100e3;
        const char *end = strstr(line, ", \"kind\"");
        printf("%s\n%.*s, \"latency_ms\": %.17g, \"bound\": \"%s\"}", layers++ ? "," : "", (int)(end - line), line,
               milliseconds, compute > memory ? "compute" : "memory");
        total += milliseconds;
    }
    printf("\n], \"total\": {\"latency_ms\": %.17g}}\n", total);
    return layers == 0;
}
