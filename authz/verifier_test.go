package authz_test

import (
	"errors"

	"github.com/whence-db/whence"
)

// reason returns the stable reason of an error, "" for none, and the text of an
// error that has no reason.
func reason(err error) string {
	var e *whence.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Reason
	}
	return err.Error()
}
