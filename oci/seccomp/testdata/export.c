/*
 * Writes the filter that libseccomp makes of the rules on standard input:
 *   arch TOKEN                              an architecture of the filter
 *   default ACTION                          (after the architectures)
 *   rule ACTION NAME [ARG OP A B]...        OP is an enum scmp_compare
 * Names that libseccomp does not know are skipped and reported on standard
 * error as "unknown NAME". With the argument "names" it prints the calls it
 * knows instead: ARCH NUMBER NAME.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int names(void)
{
	static const uint32_t archs[] = { SCMP_ARCH_X86_64, SCMP_ARCH_X86, SCMP_ARCH_X32, SCMP_ARCH_AARCH64, SCMP_ARCH_ARM };
	for (unsigned a = 0; a < 5; a++)
		for (int n = 0; n < 0xf0010; n++) {
			int nr = a == 2 ? n | 0x40000000 : n;
			char *name = seccomp_syscall_resolve_num_arch(archs[a], nr);
			if (name)
				printf("%u %d %s\n", a, n, name);
			free(name);
			if (n == 1000)
				n = 0xeffff;
		}
	return 0;
}

static int rule(scmp_filter_ctx ctx, char *line)
{
	struct scmp_arg_cmp cmp[6];
	unsigned n = 0;
	char *save, *word = strtok_r(line, " \n", &save);
	uint32_t action = strtoul(strtok_r(NULL, " \n", &save), NULL, 0);
	char *name = strtok_r(NULL, " \n", &save);
	int nr = seccomp_syscall_resolve_name(name);

	if (nr == __NR_SCMP_ERROR) {
		fprintf(stderr, "unknown %s\n", name);
		return 0;
	}
	while (n < 6 && (word = strtok_r(NULL, " \n", &save))) {
		cmp[n].arg = strtoul(word, NULL, 0);
		cmp[n].op = strtoul(strtok_r(NULL, " \n", &save), NULL, 0);
		cmp[n].datum_a = strtoull(strtok_r(NULL, " \n", &save), NULL, 0);
		cmp[n].datum_b = strtoull(strtok_r(NULL, " \n", &save), NULL, 0);
		n++;
	}
	return seccomp_rule_add_array(ctx, action, nr, n, cmp);
}

int main(int argc, char **argv)
{
	static char line[1 << 16];
	uint32_t archs[8];
	unsigned n = 0;
	scmp_filter_ctx ctx = NULL;

	if (argc > 1 && !strcmp(argv[1], "names"))
		return names();
	while (fgets(line, sizeof line, stdin)) {
		int rc = 0;
		if (!strncmp(line, "arch ", 5) && n < 8) {
			archs[n++] = strtoul(line + 5, NULL, 0);
		} else if (!strncmp(line, "default ", 8)) {
			ctx = seccomp_init(strtoul(line + 8, NULL, 0));
			for (unsigned i = 0; ctx && i < n; i++)
				if (archs[i] != seccomp_arch_native())
					rc |= seccomp_arch_add(ctx, archs[i]);
			int native = 0;
			for (unsigned i = 0; i < n; i++)
				native |= archs[i] == seccomp_arch_native();
			if (!native)
				rc |= seccomp_arch_remove(ctx, seccomp_arch_native());
		} else if (ctx) {
			rc = rule(ctx, line);
		}
		if (rc) {
			fprintf(stderr, "error %d (%s)\n", rc, strerror(-rc));
			return 3;
		}
	}
	if (!ctx || seccomp_export_bpf(ctx, STDOUT_FILENO)) {
		fprintf(stderr, "export\n");
		return 4;
	}
	return 0;
}
