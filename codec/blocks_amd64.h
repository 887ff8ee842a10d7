// TABLE is 16 bytes for either half of a register, as VPSHUFB looks them up, and
// ALL the same byte everywhere.
#define TABLE(name, low, high) \
	DATA name<>+0(SB)/8, $low   \
	DATA name<>+8(SB)/8, $high  \
	DATA name<>+16(SB)/8, $low  \
	DATA name<>+24(SB)/8, $high \
	GLOBL name<>(SB), RODATA|NOPTR, $32

#define ALL(name, eight) TABLE(name, eight, eight)

// JOIN makes one mask of two.
#define JOIN(second, first) \
	SHLQ $32, second  \
	ORQ  second, first

// ESCAPED takes the backslashes of a block, as escaped these and carry, and as
// carry 1 if the block's first byte belongs to an escape of the block before. It
// makes escaped what is behind a backslash that begins an escape, and carry these
// backslashes. As in simdjson's json_escape_scanner, a run of backslashes that
// begins at an odd place is ended by a carry of the subtraction. odd is 0xaa….
#define ESCAPED(slash, carry, escaped, temp, odd) \
	ANDNQ slash, carry, temp    \
	LEAQ  (temp)(temp*1), carry \
	ORQ   odd, carry            \
	SUBQ  temp, carry           \
	XORQ  odd, carry            \
	XORQ  carry, escaped        \
	ANDQ  slash, carry
