#include "go_asm.h"
#include "textflag.h"
#include "blocks_amd64.h"

ALL(quotes, 0x2222222222222222)
ALL(slashes, 0x5c5c5c5c5c5c5c5c)
ALL(blanks, 0x2020202020202020)
ALL(zeros, 0x3030303030303030)
ALL(nines, 0x0909090909090909)

// func membersBlocks(b []byte, i int, t *template, k, limit int, rows bool) (at, n int, s stop)
//
// SI is b, AX the offset, and CX the last one that leaves room for a name of 32
// bytes, a value of 34 and what is behind it. DI is the kth name of the template, R8 the end of
// its names, R9 the first, and R15 where the
// member began.
TEXT ·membersBlocks(SB), NOSPLIT, $0-81
	MOVQ    b_base+0(FP), SI
	MOVQ    b_len+8(FP), CX
	MOVQ    i+24(FP), AX
	MOVQ    t+32(FP), R8
	MOVQ    k+40(FP), BX
	MOVBLZX rows+56(FP), R10
	SUBQ    $const_aMember, CX
	LEAQ    template_names(R8), R9
	MOVQ    template_n(R8), R8
	IMULQ   $templateName__size, R8
	ADDQ    R9, R8
	IMUL3Q  $templateName__size, BX, DI
	ADDQ    R9, DI
	VMOVDQU quotes<>(SB), Y0
	VMOVDQU slashes<>(SB), Y1
	VMOVDQU blanks<>(SB), Y2

name:
	CMPQ      AX, CX
	JGT       stopName
	CMPQ      DI, R8
	JHS       stopName
	VMOVDQU   (SI)(AX*1), Y10
	VPCMPEQB  templateName_text(DI), Y10, Y10
	VPMOVMSKB Y10, DX
	ORL       templateName_rest(DI), DX
	CMPL      DX, $-1
	JNE       stopName
	MOVQ      AX, R15
	ADDQ      templateName_n(DI), AX
	ADDQ      $templateName__size, DI
	INCQ      BX
	MOVBLZX   (SI)(AX*1), DX
	CMPL      DX, $'"'
	JNE       number

	VMOVDQU   1(SI)(AX*1), Y10
	VPCMPEQB  Y10, Y0, Y11
	VPCMPEQB  Y10, Y1, Y12
	VPCMPGTB  Y10, Y2, Y13 // signed: control characters, and what is beyond ASCII
	VPOR      Y11, Y12, Y12
	VPOR      Y12, Y13, Y12
	VPMOVMSKB Y12, DX
	TZCNTL    DX, DX
	LEAQ      1(AX)(DX*1), DX
	CMPB      (SI)(DX*1), $'"'
	JNE       stopValue
	LEAQ      1(DX), AX

behind:
	CMPQ    AX, limit+48(FP)
	JGT     over
	MOVBLZX (SI)(AX*1), DX
	CMPL    DX, $','
	JNE     brace

comma:
	INCQ AX
	CMPB (SI)(AX*1), $' '
	JNE  name
	INCQ AX
	JMP  name

brace:
	CMPL  DX, $'}'
	JNE   stopBehind
	INCQ  AX
	TESTL R10, R10
	JZ    stopEnd
	XORL  BX, BX
	MOVQ  R9, DI
	MOVL  (SI)(AX*1), DX
	CMPW  DX, $0x7b2c // ,{
	JEQ   row
	ANDL  $0xffffff, DX
	CMPL  DX, $0x7b202c // , {
	JNE   stopEnd
	INCQ  AX

row:
	ADDQ $2, AX
	JMP  name

number:
	MOVQ      AX, R11
	VMOVDQU   (SI)(AX*1), X10
	VPSUBB    zeros<>(SB), X10, X10
	VPMINUB   nines<>(SB), X10, X11
	VPCMPEQB  X10, X11, X11
	VPMOVMSKB X11, R12
	CMPL      DX, $'-'
	JNE       positive
	INCQ      R11
	SHRL      $1, R12

positive:
	NOTL   R12
	TZCNTL R12, R13
	TESTL  R13, R13
	JZ     literal
	CMPB   (SI)(R11*1), $'0'
	JEQ    zero

whole:
	LEAQ    (R11)(R13*1), DX
	MOVBLZX (SI)(DX*1), DX
	CMPL    DX, $'.'
	JNE     ends
	INCL    R13
	BLSRL   R12, R12
	TZCNTL  R12, R12
	CMPL    R12, R13
	JEQ     stopValue
	LEAQ    (R11)(R12*1), R11
	MOVBLZX (SI)(R11*1), DX
	XORL    R13, R13

ends:
	ADDQ R13, R11
	CMPQ R11, limit+48(FP)
	JGT  over
	CMPL DX, $','
	JEQ  numberComma
	CMPL DX, $'}'
	JNE  stopValue
	MOVQ R11, AX
	JMP  brace

numberComma:
	MOVQ R11, AX
	JMP  comma

zero:
	CMPL R13, $1
	JEQ  whole
	JMP  stopValue

literal:
	MOVL (SI)(AX*1), DX
	CMPL DX, $0x65757274 // true
	JEQ  four
	CMPL DX, $0x6c6c756e // null
	JEQ  four
	CMPL DX, $0x736c6166 // fals
	JNE  stopValue
	CMPB 4(SI)(AX*1), $'e'
	JNE  stopValue
	INCQ AX

four:
	ADDQ $4, AX
	JMP  behind

over:
	MOVQ R15, AX
	DECQ BX

stopName:
	MOVB $const_atName, DX
	JMP  done

stopValue:
	MOVB $const_atValue, DX
	JMP  done

stopBehind:
	MOVB $const_behindValue, DX
	JMP  done

stopEnd:
	MOVB $const_behindObject, DX

done:
	VZEROUPPER
	MOVQ AX, at+64(FP)
	MOVQ BX, n+72(FP)
	MOVB DX, s+80(FP)
	RET
