#include "textflag.h"
#include "blocks_amd64.h"

ALL(slashes, 0x5c5c5c5c5c5c5c5c)
ALL(nibble, 0x0f0f0f0f0f0f0f0f)
ALL(us, 0x7575757575757575)

// What b f n r t stand for, by their bits 2 to 5; other letters, all up to the
// backslash, stand for themselves.
TABLE(control, 0, 0x0000090d0a000c08)

// A bit of 32 to each byte: byte i takes the byte of the mask that has its bit.
DATA spread<>+0(SB)/8, $0x0000000000000000
DATA spread<>+8(SB)/8, $0x0101010101010101
DATA spread<>+16(SB)/8, $0x0202020202020202
DATA spread<>+24(SB)/8, $0x0303030303030303
GLOBL spread<>(SB), RODATA|NOPTR, $32
ALL(bits, 0x8040201008040201)

// CONTROL replaces the bytes of x of which mask has a bit and that stand for others.
#define CONTROL(x, mask) \
	VMOVD        mask, X4             \
	VPBROADCASTD X4, Y4               \
	VPSHUFB      spread<>(SB), Y4, Y4 \
	VPAND        bits<>(SB), Y4, Y4   \
	VPCMPEQB     bits<>(SB), Y4, Y4   \
	VPCMPGTB     Y0, x, Y5            \
	VPAND        Y4, Y5, Y4           \
	VPSRLW       $2, x, Y5            \
	VPAND        Y1, Y5, Y5           \
	VPSHUFB      Y5, Y2, Y5           \
	VPBLENDVB    Y4, Y5, x, x

// EIGHT appends the bytes at off in the block that have a bit in the last byte of R9.
#define EIGHT(off) \
	MOVBLZX R9, R11           \
	POPCNTL R11, R12          \
	VMOVQ   (R13)(R11*8), X4  \
	VMOVQ   off(SP), X5       \
	VPSHUFB X4, X5, X5        \
	VMOVQ   X5, (DI)(BX*1)    \
	ADDQ    R12, BX           \
	SHRQ    $8, R9

// func unquoteBlocks(dst, src []byte) (i, n int)
//
// SI is src, AX the offset in it, and CX the last one of a block. DI is dst, BX
// the offset there. DX is 1 if the first byte of the block belongs to an escape.
TEXT ·unquoteBlocks(SB), NOSPLIT, $64-64
	MOVQ    dst_base+0(FP), DI
	MOVQ    src_base+24(FP), SI
	MOVQ    src_len+32(FP), CX
	SUBQ    $64, CX
	XORL    AX, AX
	XORL    BX, BX
	XORL    DX, DX
	LEAQ    ·packing(SB), R13
	VMOVDQU slashes<>(SB), Y0
	VMOVDQU nibble<>(SB), Y1
	VMOVDQU control<>(SB), Y2
	VMOVDQU us<>(SB), Y3
	JMP     block

whole:
	VMOVDQU Y10, (DI)(BX*1)
	VMOVDQU Y11, 32(DI)(BX*1)
	ADDQ    $64, BX

next:
	ADDQ $64, AX

block:
	CMPQ      AX, CX
	JGT       done
	VMOVDQU   (SI)(AX*1), Y10
	VMOVDQU   32(SI)(AX*1), Y11
	VPCMPEQB  Y10, Y0, Y4
	VPMOVMSKB Y4, R9
	VPCMPEQB  Y11, Y0, Y4
	VPMOVMSKB Y4, R8
	JOIN(R8, R9)
	MOVQ      R9, R12
	ORQ       DX, R12
	JZ        whole

	// R12 becomes what is behind a backslash that begins an escape, R15 these.
	MOVQ DX, R15
	MOVQ $0xaaaaaaaaaaaaaaaa, R10
	ESCAPED(R9, R15, R12, R11, R10)

	VPCMPEQB  Y10, Y3, Y4
	VPMOVMSKB Y4, R10
	VPCMPEQB  Y11, Y3, Y4
	VPMOVMSKB Y4, R11
	JOIN(R11, R10)
	TESTQ     R12, R10
	JNZ       done // \u

	CONTROL(Y10, R12)
	SHRQ    $32, R12
	CONTROL(Y11, R12)
	VMOVDQU Y10, (SP)
	VMOVDQU Y11, 32(SP)
	MOVQ    R15, R9 // they are left out
	NOTQ    R9
	MOVQ    R15, DX
	SHRQ    $63, DX
	EIGHT(0)
	EIGHT(8)
	EIGHT(16)
	EIGHT(24)
	EIGHT(32)
	EIGHT(40)
	EIGHT(48)
	EIGHT(56)
	JMP     next

done:
	SUBQ DX, AX
	VZEROUPPER
	MOVQ AX, i+48(FP)
	MOVQ BX, n+56(FP)
	RET
