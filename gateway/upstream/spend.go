package upstream

import (
	"math/big"
	"net/http"
	"regexp"
	"strings"
)

// decimalForm bounds what is computed with: an exponent of many digits would be a
// number of as many bytes.
var decimalForm = regexp.MustCompile(`^[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?$`)

// Spend tells what a request did cost, in millionths: what the rule's header says,
// rounded up, and at most CostMicros; CostMicros where there is no header, more than
// one, or one that is not a plain number.
func Spend(r Rule, reply http.Header) int64 {
	limit := max(0, r.CostMicros)
	values := reply.Values(r.SpendHeader)
	if r.SpendHeader == "" || len(values) != 1 {
		return limit
	}
	text := strings.Trim(values[0], " \t")
	if !decimalForm.MatchString(text) {
		return limit
	}
	spent, ok := new(big.Rat).SetString(text)
	if !ok {
		return limit
	}
	spent.Mul(spent, new(big.Rat).SetInt64(max(1, r.SpendUnitMicros)))
	micros, rest := new(big.Int).QuoRem(spent.Num(), spent.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		micros.Add(micros, big.NewInt(1))
	}
	if !micros.IsInt64() {
		return limit
	}
	return min(limit, micros.Int64())
}
