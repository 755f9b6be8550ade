package strict

import (
	"encoding/json"
	"errors"
	"math"
	"time"
)

// Audience is one string or a list of them.
type Audience []string

// MarshalJSON writes one audience as a string.
func (a Audience) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}

// UnmarshalJSON reads both forms.
func (a *Audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = Audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// Seconds is a NumericDate: seconds since 1970, perhaps with a fraction.
type Seconds float64

// lastSecond is in the year 9999, the last that time.Time writes in RFC 3339.
const lastSecond = 253402300799

// UnmarshalJSON refuses times that time.Time cannot hold or write.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if !(f >= 0 && f <= lastSecond) {
		return errors.New("a time is out of range")
	}
	*s = Seconds(f)
	return nil
}

// Time returns the same time in UTC.
func (s Seconds) Time() time.Time {
	whole, fraction := math.Modf(float64(s))
	return time.Unix(int64(whole), int64(fraction*1e9)).UTC()
}

// SecondsOf cuts t to whole seconds.
func SecondsOf(t time.Time) *Seconds {
	s := Seconds(t.Unix())
	return &s
}
