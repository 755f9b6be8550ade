package action

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

const (
	maxDigits   = 1000 // of a number as it is written
	maxExponent = 400
	// Decimals of so few digits come through a double unharmed, and whole numbers up to maxSafe.
	safeDigits = 15
	maxSafe    = 1<<53 - 1
)

var numeral = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?$`)

// fitNumber takes a number as JSON has it, or in a string, and gives it one form:
// plain decimal digits without needless zeros.
func (p Parameter) fitNumber(given any) (value, error) {
	var s string
	switch n := given.(type) {
	case json.Number:
		s = string(n)
	case string:
		s = n
	case float64:
		if math.IsNaN(n) || math.IsInf(n, 0) {
			return value{}, errType
		}
		if p.Type == Integer && math.Abs(n) > maxSafe {
			return value{}, errors.New("is too large for a JSON number: write it as a string")
		}
		s = strconv.FormatFloat(n, 'g', -1, 64)
	case int:
		s = strconv.Itoa(n)
	case int64:
		s = strconv.FormatInt(n, 10)
	default:
		return value{}, errType
	}
	if len(s) > maxDigits || !numeral.MatchString(s) {
		return value{}, errors.New("is not a number")
	}
	text, digits, err := decimal(s)
	if err != nil {
		return value{}, err
	}
	exact, ok := new(big.Rat).SetString(text)
	switch {
	case !ok:
		return value{}, errors.New("is not a number")
	case p.Type == Integer && !exact.IsInt():
		return value{}, errors.New("is not whole")
	case p.Minimum != nil && exact.Cmp(new(big.Rat).SetFloat64(*p.Minimum)) < 0:
		return value{}, errors.New("is too small")
	case p.Maximum != nil && exact.Cmp(new(big.Rat).SetFloat64(*p.Maximum)) > 0:
		return value{}, errors.New("is too large")
	}
	f, _ := strconv.ParseFloat(text, 64)
	safe := digits <= safeDigits && (f == 0 || math.Abs(f) > 1e-300 && math.Abs(f) < 1e300)
	if exact.IsInt() && math.Abs(f) <= maxSafe {
		safe = true
	} else if p.Type == Integer {
		safe = false
	}
	if safe {
		return ofText(text, json.Number(text))
	}
	return ofText(text, text)
}

// decimal writes a numeral without exponent and needless zeros, and counts its
// significant digits.
func decimal(s string) (text string, digits int, err error) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(s), "e")
	shift := 0
	if exponent != "" {
		if shift, err = strconv.Atoi(exponent); err != nil || shift > maxExponent || shift < -maxExponent {
			return "", 0, fmt.Errorf("has an exponent beyond %d", maxExponent)
		}
	}
	sign := ""
	if strings.HasPrefix(mantissa, "-") {
		sign, mantissa = "-", mantissa[1:]
	}
	whole, part, _ := strings.Cut(mantissa, ".")
	all, point := whole+part, len(whole)+shift
	if point < 0 {
		all, point = strings.Repeat("0", -point)+all, 0
	}
	if point > len(all) {
		all += strings.Repeat("0", point-len(all))
	}
	whole, part = strings.TrimLeft(all[:point], "0"), strings.TrimRight(all[point:], "0")
	digits = len(strings.Trim(whole+part, "0"))
	switch {
	case digits == 0:
		return "0", 1, nil
	case whole == "":
		whole = "0"
	}
	if part != "" {
		part = "." + part
	}
	return sign + whole + part, digits, nil
}
