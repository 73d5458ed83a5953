/* Start-up of a Cortex-M4 with semihosting, for `exports.py`: QEMU's board mps2-an386. */

#include <stdint.h>
#include <stdlib.h>

extern uint32_t _stack, _data_load, _data_start, _data_end, _bss_start, _bss_end;
extern int main(void);
extern void initialise_monitor_handles(void);

void _init(void) {}
void _fini(void) {}

void reset(void) {
  uint32_t *from = &_data_load, *to;
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* the floating-point unit is off at first */
  for (to = &_data_start; to < &_data_end;) *to++ = *from++;
  for (to = &_bss_start; to < &_bss_end;) *to++ = 0;
  initialise_monitor_handles();
  exit(main());
}

static void stop(void) {
  for (;;) {
  }
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {&_stack, (void *)reset, (void *)stop,
                                                                             (void *)stop};
