package network

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// largest exponent of a quantity that is computed with: 10^18 is beyond all
// rates that exist, and a big exponent would take all memory.
const maxExponent = 18

// parseQuantity returns the value of a Kubernetes resource quantity ("10M",
// "1.5Gi", "2e6") rounded up to a whole number.
func parseQuantity(text string) (uint64, error) {
	digits := len(text)
	for i, r := range text {
		if (r < '0' || r > '9') && r != '.' && (i > 0 || r != '+') {
			digits = i
			break
		}
	}
	number, suffix := text[:digits], text[digits:]
	if len(number) > 64 || strings.Trim(number, "+.") == "" {
		return 0, fmt.Errorf("%w: quantity %q: want a number such as 10M", ErrInvalid, quote([]byte(text)))
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("%w: quantity %q: want a number such as 10M", ErrInvalid, quote([]byte(text)))
	}
	scale, ok := quantityScale(suffix)
	if !ok {
		return 0, fmt.Errorf("%w: quantity %q: unknown suffix %q", ErrInvalid, quote([]byte(text)), quote([]byte(suffix)))
	}
	value.Mul(value, scale)
	whole, rest := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	if !whole.IsUint64() {
		return 0, fmt.Errorf("%w: quantity %q is too large", ErrInvalid, quote([]byte(text)))
	}
	return whole.Uint64(), nil
}

func quantityScale(suffix string) (*big.Rat, bool) {
	if suffix == "" {
		return big.NewRat(1, 1), true
	}
	if binary, ok := strings.CutSuffix(suffix, "i"); ok {
		power := strings.Index("KMGTPE", binary)
		if len(binary) != 1 || power < 0 {
			return nil, false
		}
		return new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), uint(10*(power+1)))), true
	}
	if len(suffix) == 1 {
		if power := strings.Index("num kMGTPE", suffix); power >= 0 && suffix != " " {
			return powerOfTen(3 * (power - 3)), true
		}
		return nil, false
	}
	if suffix[0] != 'e' && suffix[0] != 'E' {
		return nil, false
	}
	exponent, err := strconv.Atoi(suffix[1:])
	if err != nil || exponent > maxExponent || exponent < -maxExponent {
		return nil, false
	}
	return powerOfTen(exponent), true
}

func powerOfTen(n int) *big.Rat {
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(n, -n))), nil)
	if n < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), power)
	}
	return new(big.Rat).SetInt(power)
}
