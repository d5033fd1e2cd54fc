// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// WORDS adds the halves of each 64-bit word of 32 bytes to two accumulators,
// whose upper halves take the carries.
#define WORDS(off, low, high) \
	VMOVDQU off(SI), Y4    \
	VPSRLQ  $32, Y4, Y5    \
	VPAND   Y6, Y4, Y4     \
	VPADDQ  Y4, low, low   \
	VPADDQ  Y5, high, high

// func sumAVX2(b []byte) uint64
TEXT ·sumAVX2(SB), NOSPLIT, $0-32
	MOVQ     b_base+0(FP), SI
	MOVQ     b_len+8(FP), CX
	VPXOR    Y0, Y0, Y0
	VPXOR    Y1, Y1, Y1
	VPXOR    Y2, Y2, Y2
	VPXOR    Y3, Y3, Y3
	VPCMPEQD Y6, Y6, Y6
	VPSRLQ   $32, Y6, Y6
	SHRQ     $7, CX
	JZ       done

loop:
	WORDS(0, Y0, Y1)
	WORDS(32, Y2, Y3)
	WORDS(64, Y0, Y1)
	WORDS(96, Y2, Y3)
	ADDQ $128, SI
	DECQ CX
	JNZ  loop

done:
	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VPADDQ       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSHUFD      $0x4e, X0, X1
	VPADDQ       X1, X0, X0
	VMOVQ        X0, AX
	MOVQ         AX, ret+24(FP)
	VZEROUPPER
	RET
