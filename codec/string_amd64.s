#include "textflag.h"
#include "blocks_amd64.h"

ALL(quotes, 0x2222222222222222)
ALL(slashes, 0x5c5c5c5c5c5c5c5c)
ALL(blanks, 0x2020202020202020)
ALL(nibble, 0x0f0f0f0f0f0f0f0f)
ALL(tops, 0x8080808080808080)

// What follows the backslash in an escape of two bytes, " / \ b f n r t, are the
// bytes whose nibbles share a bit. The bits stand for the high nibbles 2, 5, 6, 7.
TABLE(letterLow, 0x00040008000d0000, 0x0104000200000000)
TABLE(letterHigh, 0x0804020000010000, 0)

// Keiser and Lemire, Validating UTF-8 In Less Than One Instruction Per Byte: two
// bytes are wrong in a row if their first three nibbles share a bit; but bit 7 is
// of two continuations, which are wrong unless a longer character needs both.
TABLE(firstHigh, 0x0202020202020202, 0x4915012180808080)
TABLE(firstLow, 0xcbcbcb8b8383a3e7, 0xcbcbdbcbcbcbcbcb)
TABLE(secondHigh, 0x0101010101010101, 0x01010101babaaee6)
ALL(three, 0x6060606060606060) // this less, what leads three bytes or four has bit 7
ALL(four, 0x7070707070707070)  // this less, what leads four

// What is above these at the end of a register leads more bytes than there are.
DATA whole<>+0(SB)/8, $0xffffffffffffffff
DATA whole<>+8(SB)/8, $0xffffffffffffffff
DATA whole<>+16(SB)/8, $0xffffffffffffffff
DATA whole<>+24(SB)/8, $0xbfdfefffffffffff
GLOBL whole<>(SB), RODATA|NOPTR, $32

// Large frames come from memory: asked for in time, they are read half again as fast.
#define AHEAD PREFETCHT0 1024(SI)(AX*1)

// MASKS sets bit i of each of quote, slash, low and high if byte i of x is a
// quote, a backslash, below 0x20 as a signed byte, or beyond ASCII.
#define MASKS(x, quote, slash, low, high) \
	VPCMPEQB  x, Y0, Y12 \
	VPMOVMSKB Y12, quote \
	VPCMPEQB  x, Y1, Y12 \
	VPMOVMSKB Y12, slash \
	VPCMPGTB  x, Y2, Y12 \
	VPMOVMSKB Y12, low   \
	VPMOVMSKB x, high

// ANYMASK sets the bits of bytes of x that are any of these.
#define ANYMASK(x, mask) \
	VPCMPEQB  x, Y0, Y12    \
	VPCMPEQB  x, Y1, Y13    \
	VPOR      Y12, Y13, Y12 \
	VPCMPGTB  x, Y2, Y13    \
	VPOR      Y12, Y13, Y12 \
	VPMOVMSKB Y12, mask

// LETTERS sets the bits of bytes of x that are no letter of an escape of two bytes.
#define LETTERS(x, mask) \
	VPSRLW    $4, x, Y12    \
	VPAND     Y3, Y12, Y12  \
	VPSHUFB   Y12, Y5, Y12  \
	VPSHUFB   x, Y4, Y13    \
	VPAND     Y12, Y13, Y12 \
	VPCMPEQB  Y9, Y12, Y12  \
	VPMOVMSKB Y12, mask

// UTF8 sets the bits of bytes of x, which is at AX+at, that are no error.
#define UTF8(x, at, mask) \
	VMOVDQU   at-1(SI)(AX*1), Y12   \
	VPSRLW    $4, Y12, Y13          \
	VPAND     Y3, Y13, Y13          \
	VPSHUFB   Y13, Y6, Y13          \
	VPAND     Y3, Y12, Y12          \
	VPSHUFB   Y12, Y7, Y12          \
	VPAND     Y12, Y13, Y13         \
	VPSRLW    $4, x, Y12            \
	VPAND     Y3, Y12, Y12          \
	VPSHUFB   Y12, Y8, Y12          \
	VPAND     Y12, Y13, Y13         \
	VMOVDQU   at-2(SI)(AX*1), Y12   \
	VPSUBUSB  three<>(SB), Y12, Y12 \
	VMOVDQU   at-3(SI)(AX*1), Y14   \
	VPSUBUSB  four<>(SB), Y14, Y14  \
	VPOR      Y14, Y12, Y12         \
	VPAND     Y12, Y15, Y12         \
	VPXOR     Y12, Y13, Y13         \
	VPCMPEQB  Y9, Y13, Y13          \
	VPMOVMSKB Y13, mask

// func stringBlocks(b []byte, i int) int
//
// SI is b, CX the last offset of a block, and AX the offset of the present one.
// DX is 1 if its first byte belongs to an escape, and BX if the one before it
// ends within a character.
TEXT ·stringBlocks(SB), NOSPLIT, $0-40
	MOVQ    b_base+0(FP), SI
	MOVQ    b_len+8(FP), CX
	MOVQ    i+24(FP), AX
	SUBQ    $64, CX
	XORL    DX, DX
	XORL    BX, BX
	VMOVDQU quotes<>(SB), Y0
	VMOVDQU slashes<>(SB), Y1
	VMOVDQU blanks<>(SB), Y2
	JMP     first

plain:
	ADDQ $64, AX

first:
	CMPQ      AX, CX
	JGT       short
	VMOVDQU   (SI)(AX*1), Y10
	VMOVDQU   32(SI)(AX*1), Y11
	AHEAD
	VPCMPEQB  Y10, Y0, Y12
	VPCMPEQB  Y10, Y1, Y13
	VPOR      Y12, Y13, Y12
	VPCMPGTB  Y10, Y2, Y13
	VPOR      Y12, Y13, Y12
	VPCMPEQB  Y11, Y0, Y13
	VPOR      Y12, Y13, Y12
	VPCMPEQB  Y11, Y1, Y13
	VPOR      Y12, Y13, Y12
	VPCMPGTB  Y11, Y2, Y13
	VPOR      Y12, Y13, Y12
	VPTEST    Y12, Y12
	JZ        plain

	VMOVDQU nibble<>(SB), Y3
	VMOVDQU letterLow<>(SB), Y4
	VMOVDQU letterHigh<>(SB), Y5
	VMOVDQU firstHigh<>(SB), Y6
	VMOVDQU firstLow<>(SB), Y7
	VMOVDQU secondHigh<>(SB), Y8
	VPXOR   Y9, Y9, Y9
	VMOVDQU tops<>(SB), Y15
	JMP     masks

next:
	ADDQ    $64, AX
	CMPQ    AX, CX
	JGT     short
	VMOVDQU (SI)(AX*1), Y10
	VMOVDQU 32(SI)(AX*1), Y11
	AHEAD

masks:
	MASKS(Y10, R8, R9, R10, R11)
	MASKS(Y11, DI, R12, R13, R15)
	JOIN(DI, R8)
	JOIN(R12, R9)
	JOIN(R13, R10)
	JOIN(R15, R11)
	ANDNQ R10, R11, R10 // control characters
	XORL  DI, DI        // wrong letters of escapes
	XORL  R12, R12      // wrong bytes of characters

	MOVQ R9, R13
	ORQ  DX, R13
	JZ   characters

	MOVQ  $0xaaaaaaaaaaaaaaaa, DI
	ESCAPED(R9, DX, R13, R15, DI)
	SHRQ  $63, DX
	ANDNQ R8, R13, R8
	LETTERS(Y10, DI)
	LETTERS(Y11, R15)
	JOIN(R15, DI)
	ANDQ  R13, DI

characters:
	MOVQ R11, R13
	ORQ  BX, R13
	JZ   stops
	UTF8(Y10, 0, R12)
	UTF8(Y11, 32, R13)
	JOIN(R13, R12)
	NOTQ R12
	XORL BX, BX
	VPSUBUSB whole<>(SB), Y11, Y12
	VPTEST Y12, Y12
	SETNE  BX

stops:
	ORQ  R10, R8
	ORQ  DI, R8
	ORQ  R12, R8
	JZ   next
	BLSIQ R8, R9
	TZCNTQ R8, R8
	ADDQ R8, AX
	TESTQ R9, R12
	JNZ  wrong
	TESTQ R9, DI
	JZ   done
	DECQ AX // the backslash
	JMP  done

short:
	SUBQ  DX, AX
	TESTL BX, BX
	JNZ   back

	// The last 64 bytes once more, up to the first that is not plain.
	MOVQ    CX, R8
	SUBQ    AX, CX
	NEGQ    CX // how many of them have been read
	CMPQ    CX, $64
	JGE     done
	VMOVDQU (SI)(R8*1), Y10
	VMOVDQU 32(SI)(R8*1), Y11
	ANYMASK(Y10, R9)
	ANYMASK(Y11, R8)
	JOIN(R8, R9)
	SHRQ    CX, R9
	JZ      end
	TZCNTQ  R9, R9
	ADDQ    R9, AX
	JMP     done

end:
	MOVQ b_len+8(FP), AX
	JMP  done

back:
	DECQ AX
	CMPB (SI)(AX*1), $0xc0
	JCS  back

done:
	VZEROUPPER
	MOVQ AX, ret+32(FP)
	RET

wrong:
	VZEROUPPER
	MOVQ $-1, ret+32(FP)
	RET

// func endBlocks(b []byte, i int) (at int, done bool)
TEXT ·endBlocks(SB), NOSPLIT, $0-41
	MOVQ    b_base+0(FP), SI
	MOVQ    b_len+8(FP), CX
	MOVQ    i+24(FP), AX
	SUBQ    $64, CX
	XORL    DX, DX
	MOVQ    $0xaaaaaaaaaaaaaaaa, DI
	VMOVDQU quotes<>(SB), Y0
	VMOVDQU slashes<>(SB), Y1
	JMP     more

onward:
	ADDQ $64, AX

more:
	CMPQ      AX, CX
	JGT       open
	VMOVDQU   (SI)(AX*1), Y10
	VMOVDQU   32(SI)(AX*1), Y11
	AHEAD
	VPCMPEQB  Y10, Y0, Y12
	VPMOVMSKB Y12, R8
	VPCMPEQB  Y11, Y0, Y12
	VPMOVMSKB Y12, R10
	VPCMPEQB  Y10, Y1, Y12
	VPMOVMSKB Y12, R9
	VPCMPEQB  Y11, Y1, Y12
	VPMOVMSKB Y12, R11
	JOIN(R10, R8)
	JOIN(R11, R9)
	MOVQ      R9, R13
	ORQ       DX, R13
	JZ        unescaped
	ESCAPED(R9, DX, R13, R15, DI)
	SHRQ      $63, DX
	ANDNQ     R8, R13, R8

unescaped:
	TESTQ  R8, R8
	JZ     onward
	TZCNTQ R8, R8
	LEAQ   1(AX)(R8*1), AX
	VZEROUPPER
	MOVQ   AX, at+32(FP)
	MOVB   $1, done+40(FP)
	RET

open:
	SUBQ DX, AX
	VZEROUPPER
	MOVQ AX, at+32(FP)
	MOVB $0, done+40(FP)
	RET
