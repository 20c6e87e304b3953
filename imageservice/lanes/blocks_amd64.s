#include "textflag.h"

// SHA-256 of eight lanes: element i of each vector belongs to lane i. The
// working variables are in Y0 to Y7, the sixteen words of the message schedule
// in Y16 to Y31. Y8 to Y15 are scratch. With AVX-512VL a rotation is one
// instruction and so is each function of three words, given as a truth table.

#define XOR3 $0x96
#define CHOOSE $0xca
#define MAJORITY $0xe8

// LOAD reads four words of each lane, at an offset, into four vectors.
#define LOAD(off, w0, w1, w2, w3) \
	VMOVDQU off(R8)(SI*1), X8; \
	VMOVDQU off(R9)(SI*1), X9; \
	VMOVDQU off(R10)(SI*1), X10; \
	VMOVDQU off(R11)(SI*1), X11; \
	VINSERTI128 $1, off(R12)(SI*1), Y8, Y8; \
	VINSERTI128 $1, off(R13)(SI*1), Y9, Y9; \
	VINSERTI128 $1, off(AX)(SI*1), Y10, Y10; \
	VINSERTI128 $1, off(BX)(SI*1), Y11, Y11; \
	VPSHUFB bigEndian<>(SB), Y8, Y8; \
	VPSHUFB bigEndian<>(SB), Y9, Y9; \
	VPSHUFB bigEndian<>(SB), Y10, Y10; \
	VPSHUFB bigEndian<>(SB), Y11, Y11; \
	VPUNPCKLDQ Y9, Y8, Y12; \
	VPUNPCKHDQ Y9, Y8, Y13; \
	VPUNPCKLDQ Y11, Y10, Y14; \
	VPUNPCKHDQ Y11, Y10, Y15; \
	VPUNPCKLQDQ Y14, Y12, w0; \
	VPUNPCKHQDQ Y14, Y12, w1; \
	VPUNPCKLQDQ Y15, Y13, w2; \
	VPUNPCKHQDQ Y15, Y13, w3

// ROUND leaves the new a in h and the new e in d; the next round's variables
// are named one further.
#define ROUND(a, b, c, d, e, f, g, h, w, k) \
	VPADDD.BCST k*4(DI), w, Y8; \
	VPRORD $6, e, Y9; \
	VPRORD $11, e, Y10; \
	VPRORD $25, e, Y11; \
	VMOVDQA e, Y12; \
	VPADDD Y8, h, h; \
	VPTERNLOGD XOR3, Y10, Y11, Y9; \
	VPTERNLOGD CHOOSE, g, f, Y12; \
	VPADDD Y12, h, h; \
	VPADDD Y9, h, h; \
	VPRORD $2, a, Y9; \
	VPRORD $13, a, Y10; \
	VPRORD $22, a, Y11; \
	VMOVDQA a, Y12; \
	VPADDD h, d, d; \
	VPTERNLOGD MAJORITY, c, b, Y12; \
	VPTERNLOGD XOR3, Y10, Y11, Y9; \
	VPADDD Y12, h, h; \
	VPADDD Y9, h, h

// EXTEND makes the word sixteen further of w0.
#define EXTEND(w0, w1, w9, w14) \
	VPRORD $7, w1, Y13; \
	VPRORD $18, w1, Y14; \
	VPSRLD $3, w1, Y15; \
	VPADDD w9, w0, w0; \
	VPTERNLOGD XOR3, Y14, Y15, Y13; \
	VPADDD Y13, w0, w0; \
	VPRORD $17, w14, Y13; \
	VPRORD $19, w14, Y14; \
	VPSRLD $10, w14, Y15; \
	VPTERNLOGD XOR3, Y14, Y15, Y13; \
	VPADDD Y13, w0, w0

#define ROUND_EXTEND(a, b, c, d, e, f, g, h, w, k, w1, w9, w14) \
	ROUND(a, b, c, d, e, f, g, h, w, k); \
	EXTEND(w, w1, w9, w14)

// ADD adds a block's result to one word of the states.
#define ADD(off, v) \
	VPADDD off(DX), v, v; \
	VMOVDQU v, off(DX)

// func blocks(states *[8][8]uint32, data *[8]*byte, count int)
TEXT ·blocks(SB), NOSPLIT, $0-24
	MOVQ states+0(FP), DX
	MOVQ data+8(FP), DI
	MOVQ count+16(FP), CX
	MOVQ 0(DI), R8
	MOVQ 8(DI), R9
	MOVQ 16(DI), R10
	MOVQ 24(DI), R11
	MOVQ 32(DI), R12
	MOVQ 40(DI), R13
	MOVQ 48(DI), AX
	MOVQ 56(DI), BX
	XORQ SI, SI
	SHLQ $6, CX
	VMOVDQU 0(DX), Y0
	VMOVDQU 32(DX), Y1
	VMOVDQU 64(DX), Y2
	VMOVDQU 96(DX), Y3
	VMOVDQU 128(DX), Y4
	VMOVDQU 160(DX), Y5
	VMOVDQU 192(DX), Y6
	VMOVDQU 224(DX), Y7

block:
	CMPQ SI, CX
	JGE done
	LOAD(0, Y16, Y17, Y18, Y19)
	LOAD(16, Y20, Y21, Y22, Y23)
	LOAD(32, Y24, Y25, Y26, Y27)
	LOAD(48, Y28, Y29, Y30, Y31)
	LEAQ constants<>(SB), DI
	LEAQ 192(DI), R15

rounds:
	ROUND_EXTEND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y16, 0, Y17, Y25, Y30)
	ROUND_EXTEND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y17, 1, Y18, Y26, Y31)
	ROUND_EXTEND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y18, 2, Y19, Y27, Y16)
	ROUND_EXTEND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y19, 3, Y20, Y28, Y17)
	ROUND_EXTEND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y20, 4, Y21, Y29, Y18)
	ROUND_EXTEND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y21, 5, Y22, Y30, Y19)
	ROUND_EXTEND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y22, 6, Y23, Y31, Y20)
	ROUND_EXTEND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y23, 7, Y24, Y16, Y21)
	ROUND_EXTEND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y24, 8, Y25, Y17, Y22)
	ROUND_EXTEND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y25, 9, Y26, Y18, Y23)
	ROUND_EXTEND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y26, 10, Y27, Y19, Y24)
	ROUND_EXTEND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y27, 11, Y28, Y20, Y25)
	ROUND_EXTEND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y28, 12, Y29, Y21, Y26)
	ROUND_EXTEND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y29, 13, Y30, Y22, Y27)
	ROUND_EXTEND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y30, 14, Y31, Y23, Y28)
	ROUND_EXTEND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y31, 15, Y16, Y24, Y29)
	ADDQ $64, DI
	CMPQ DI, R15
	JLT rounds

	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y16, 0)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y17, 1)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y18, 2)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y19, 3)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y20, 4)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y21, 5)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y22, 6)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y23, 7)
	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y24, 8)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y25, 9)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y26, 10)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y27, 11)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y28, 12)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y29, 13)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y30, 14)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y31, 15)

	ADD(0, Y0)
	ADD(32, Y1)
	ADD(64, Y2)
	ADD(96, Y3)
	ADD(128, Y4)
	ADD(160, Y5)
	ADD(192, Y6)
	ADD(224, Y7)
	ADDQ $64, SI
	JMP block

done:
	VZEROUPPER
	RET

// func cpuid(leaf uint32) (ebx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-12
	MOVL leaf+0(FP), AX
	XORL CX, CX
	CPUID
	MOVL BX, ebx+8(FP)
	RET

DATA bigEndian<>+0(SB)/8, $0x0405060700010203
DATA bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
DATA bigEndian<>+16(SB)/8, $0x0405060700010203
DATA bigEndian<>+24(SB)/8, $0x0c0d0e0f08090a0b
GLOBL bigEndian<>(SB), RODATA|NOPTR, $32

// SHA-256's, one for each round.
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
