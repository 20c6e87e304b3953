// Package seccomp compiles an OCI seccomp profile (specs.LinuxSeccomp) into
// the classic BPF program that the kernel loads, in pure Go.
//
// A Filter is the compiled program. A profile is resolved first (Default,
// LoadProfile: which rules hold for these capabilities, this kernel and this
// architecture) and compiled then (Compile). Both are pure functions; a Cache
// keeps their results.
//
// A filter decides as libseccomp's would for the same profile, system call by
// system call:
//
//   - a name means its number on each architecture of the profile; names
//     unknown to an architecture are skipped there;
//   - a rule whose action is the default action is skipped;
//   - a rule without arguments beats rules with arguments, the first such rule
//     beats later ones;
//   - the arguments of a rule are joined by AND, but when a rule names one
//     argument twice, each of its arguments is a rule of its own (OR);
//   - where several rules match, the one with the higher argument index wins,
//     then equality before upper bound before lower bound, then the rule with
//     fewer arguments;
//   - on 32-bit architectures only the low 32 bits of an argument are compared;
//   - on i386 the socket and System V IPC calls are also matched as operations
//     of socketcall and ipc, where argument 0 is the operation and a condition
//     on argument 0 is therefore lost;
//   - a call from any other architecture kills the thread.
//
// Where libseccomp 2.5 itself departs from the rules as written (it merges
// overlapping bounds on one argument wrongly), the rules as written hold. Two
// things differ on purpose:
//
//   - as with runc, under a default action of SCMP_ACT_ERRNO a call newer than
//     every call that the profile names returns ENOSYS, because C libraries
//     fall back to older calls on ENOSYS but give up on EPERM;
//   - arguments that the kernel reads as 32-bit values (the family of socket,
//     the request of ioctl, see intArguments) are compared as such on 64-bit
//     architectures too. Otherwise a caller who sets a bit above gets past a
//     rule such as the default profile's for AF_ALG and AF_VSOCK.
//
// Invariant: every program leaves this package with at most MaxInstructions
// instructions, only forward jumps and a return at the end of every path.
package seccomp

//go:generate go run mktable.go
