/*
 * Where the kernel enters, and the few functions that the compiler itself calls.
 */
#include "monitor.h"

#ifdef HOSTED

/* Descriptors 0 to 2 are /dev/null: reports of the sanitizers go to a file. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0:allocator_may_return_null=1:log_path=" REPORTS;
}

const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
	return "print_stacktrace=1:log_path=" REPORTS;
}

int main(int argc, char **argv)
{
	return monitor_main(argc, argv);
}

#else

void *memset(void *to, int value, size_t n)
{
	for (u8 *p = to; n--; p++)
		*p = (u8)value;
	return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
	u8 *t = to;

	for (const u8 *f = from; n--; f++)
		*t++ = *f;
	return to;
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall entry\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl entry\n");
#endif

_Noreturn void entry(long *stack);
_Noreturn void entry(long *stack)
{
	leave(monitor_main((int)stack[0], (char **)(stack + 1)));
}

#endif
