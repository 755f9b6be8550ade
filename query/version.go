package query

import (
	"context"
	"strconv"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/index"
)

// GetVersion returns one captured version of a row; VERSION_NOT_FOUND when the
// scope does not hold it or it has been purged.
func (e *Engine) GetVersion(ctx context.Context, scope authz.Scope, ref Ref, version int32) (index.Version, error) {
	// A page of one that begins below the version above.
	found, _, err := e.ListVersions(ctx, scope, ref, 1, strconv.FormatInt(int64(version)+1, 10))
	if err != nil {
		return index.Version{}, err
	}
	if len(found) == 0 || found[0].Version != version {
		return index.Version{}, &whence.Error{Kind: whence.ErrNotFound, Reason: "VERSION_NOT_FOUND",
			Message: "this version of the row is not there any more"}
	}
	return found[0], nil
}
