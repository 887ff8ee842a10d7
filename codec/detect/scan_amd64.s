#include "textflag.h"

// What bytes are compared with: the digits from '0' on are ten, the letters from 'a' on
// 26, and ' ' is also the bit by which letters' cases differ.
DATA marks<>+0(SB)/8, $"0\x09 a\x19@+:"
DATA marks<>+8(SB)/8, $".-\x00\x00\x00\x00\x00\x00"
GLOBL marks<>(SB), RODATA|NOPTR, $16

// row stores a bit for each byte of reg that is 0xff, as the row that begins at offset.
#define row(reg, offset) \
	VPMOVMSKB reg, AX                      \
	MOVL AX, offset(DI)

// between makes the bytes of dst 0xff where those of src are from low to low+size.
#define between(src, low, size, tmp, dst) \
	VPSUBB   low, src, tmp                 \
	VPMINUB  size, tmp, dst                \
	VPCMPEQB tmp, dst, dst

// rowSize is that of scan.go.
#define rowSize 528

// classes writes 32 bytes' bits into the rows, in their order in scan.go.
#define classes(from) \
	VMOVDQU  from(SI), Y0                  \
	between(Y0, Y15, Y14, Y1, Y2)          \
	row(Y2, 0*rowSize+(from/8))            \
	VPOR     Y13, Y0, Y3                   \
	between(Y3, Y12, Y11, Y4, Y5)          \
	row(Y5, 1*rowSize+(from/8))            \
	VPCMPEQB Y10, Y0, Y1                   \
	row(Y1, 2*rowSize+(from/8))            \
	VPCMPEQB Y9, Y0, Y2                    \
	row(Y2, 3*rowSize+(from/8))            \
	VPCMPEQB Y8, Y0, Y3                    \
	row(Y3, 4*rowSize+(from/8))            \
	VPCMPEQB Y7, Y0, Y4                    \
	row(Y4, 5*rowSize+(from/8))            \
	VPCMPEQB Y6, Y0, Y1                    \
	VPCMPEQB Y13, Y0, Y2                   \
	VPOR     Y1, Y2, Y2                    \
	row(Y2, 6*rowSize+(from/8))

// func classify(dst, text *byte, blocks int)
TEXT ·classify(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ text+8(FP), SI
	MOVQ blocks+16(FP), CX
	VPBROADCASTB marks<>+0(SB), Y15
	VPBROADCASTB marks<>+1(SB), Y14
	VPBROADCASTB marks<>+2(SB), Y13
	VPBROADCASTB marks<>+3(SB), Y12
	VPBROADCASTB marks<>+4(SB), Y11
	VPBROADCASTB marks<>+5(SB), Y10
	VPBROADCASTB marks<>+6(SB), Y9
	VPBROADCASTB marks<>+7(SB), Y8
	VPBROADCASTB marks<>+8(SB), Y7
	VPBROADCASTB marks<>+9(SB), Y6

block:
	classes(0)
	classes(32)
	ADDQ $64, SI
	ADDQ $8, DI
	DECQ CX
	JNZ  block
	VZEROUPPER
	RET

// pair makes the bytes of dst 0xff where the k-th pair begins.
#define pair(k, dst) \
	VPCMPEQB 64*k(R8), Y0, Y2              \
	VPCMPEQB 64*k+32(R8), Y1, Y3           \
	VPAND    Y2, Y3, dst

// lookup makes the sign of each of eight grams the bit that the table has for its
// hash (index.bit has the same in Go): 13 bits of it are a word's place, and five
// a bit's in the word.
#define lookup(grams) \
	VPMULLD    Y14, grams, grams           \
	VPSRLD     $14, grams, Y4              \
	VPSRLD     $19, grams, Y5              \
	VPCMPEQD   Y10, Y10, Y10               \
	VPXOR      Y11, Y11, Y11               \
	VPGATHERDD Y10, (BX)(Y5*4), Y11        \
	VPAND      Y13, Y4, Y4                 \
	VPSRLVD    Y4, Y11, Y11                \
	VPSLLD     $31, Y11, grams

// half marks 32 bytes. The grams at even places are the 16-bit words of the text
// with those of the text two bytes on between them. To unpack and to pack treat
// each half of a vector by itself, so that they are in order again behind both.
#define half(from) \
	VMOVDQU from(SI), Y0                   \
	VMOVDQU from+1(SI), Y1                 \
	pair(0, Y6)                            \
	pair(1, Y7)                            \
	pair(2, Y8)                            \
	pair(3, Y9)                            \
	VPOR Y6, Y7, Y6                        \
	VPOR Y8, Y9, Y8                        \
	VPOR Y6, Y8, Y6                        \
	VPMOVMSKB Y6, AX                       \
	MOVL AX, (from/8)(R9)                  \
	VMOVDQU from+2(SI), Y1                 \
	VPOR Y15, Y0, Y0                       \
	VPOR Y15, Y1, Y1                       \
	VPUNPCKLWD Y1, Y0, Y2                  \
	VPUNPCKHWD Y1, Y0, Y3                  \
	lookup(Y2)                             \
	lookup(Y3)                             \
	VPACKSSDW Y3, Y2, Y6                   \
	VPACKSSWB Y6, Y6, Y6                   \
	VPERMQ $8, Y6, Y6                      \
	VPMOVMSKB X6, AX                       \
	MOVW AX, (from/16)(DI)

// func mark(grams, pairs, text *byte, blocks int, table *uint64, like *likes)
TEXT ·mark(SB), NOSPLIT, $0-48
	MOVQ grams+0(FP), DI
	MOVQ pairs+8(FP), R9
	MOVQ text+16(FP), SI
	MOVQ blocks+24(FP), CX
	MOVQ table+32(FP), BX
	MOVQ like+40(FP), R8
	VPBROADCASTB marks<>+2(SB), Y15
	MOVL $0x9e3779b1, AX // hashMul
	VMOVD AX, X14
	VPBROADCASTD X14, Y14
	MOVL $31, AX
	VMOVD AX, X13
	VPBROADCASTD X13, Y13

block:
	half(0)
	half(32)
	ADDQ $64, SI
	ADDQ $4, DI
	ADDQ $8, R9
	DECQ CX
	JNZ  block
	VZEROUPPER
	RET
