package ingest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// parseTime reads a date, timestamp or timestamptz in the ISO text form that
// capture asks for; one without a zone counts as UTC. ok is false for the
// infinities, which are no moments.
func parseTime(s string) (t time.Time, ok bool, err error) {
	if s == "infinity" || s == "-infinity" {
		return time.Time{}, false, nil
	}
	fail := func() (time.Time, bool, error) {
		return time.Time{}, false, fmt.Errorf("%q is not a date or timestamp in ISO form", s)
	}
	rest, bc := strings.CutSuffix(s, " BC")
	date, clock, _ := strings.Cut(rest, " ")
	d := strings.Split(date, "-")
	if len(d) != 3 {
		return fail()
	}
	year, err1 := strconv.Atoi(d[0])
	month, err2 := strconv.Atoi(d[1])
	day, err3 := strconv.Atoi(d[2])
	if err1 != nil || err2 != nil || err3 != nil || month < 1 || month > 12 || day < 1 || day > 31 {
		return fail()
	}
	if bc {
		year = 1 - year // there was no year zero
	}
	midnight := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
	if clock == "" {
		return midnight, true, nil
	}
	local, offset := clock, time.Duration(0)
	if i := strings.IndexAny(clock, "+-"); i >= 0 {
		local = clock[:i]
		if offset, ok = parseClock(clock[i+1:]); !ok {
			return fail()
		}
		if clock[i] == '-' {
			offset = -offset
		}
	}
	since, ok := parseClock(local)
	if !ok {
		return fail()
	}
	return midnight.Add(since - offset), true, nil
}

// parseClock reads hh[:mm[:ss[.ffffff]]].
func parseClock(s string) (time.Duration, bool) {
	parts := strings.Split(s, ":")
	if len(parts) > 3 {
		return 0, false
	}
	var d time.Duration
	unit := time.Hour
	for i, p := range parts {
		whole, fraction, dotted := strings.Cut(p, ".")
		n, err := strconv.ParseUint(whole, 10, 8)
		if err != nil || dotted && (i != 2 || fraction == "" || len(fraction) > 9) {
			return 0, false
		}
		d += time.Duration(n) * unit
		if dotted {
			f, err := strconv.ParseUint((fraction + "00000000")[:9], 10, 32)
			if err != nil {
				return 0, false
			}
			d += time.Duration(f)
		}
		unit /= 60
	}
	return d, true
}
