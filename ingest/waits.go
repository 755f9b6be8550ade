package ingest

import (
	"fmt"

	"github.com/whence-db/whence"
)

// waitsFor tells what keeps a table of the source from getting on with its copy;
// empty when it does get on, or nobody knows better.
func waitsFor(state whence.TableState, s Source) string {
	if state != whence.TablePending && state != whence.TableBackfilling {
		return ""
	}
	switch s.State {
	case SourcePaused:
		return fmt.Sprintf("the source %s is PAUSED: resume it", s.Name)
	case SourceDeleting:
		return fmt.Sprintf("the source %s is being deleted", s.Name)
	case SourceBroken, SourceConnecting:
		if s.Error != "" {
			return fmt.Sprintf("the source %s is %s: %s", s.Name, s.State, s.Error)
		}
		return fmt.Sprintf("the source %s is %s: a process with the role capture is yet to follow it", s.Name, s.State)
	case SourceStreaming:
		switch {
		case s.healthAge > healthLimit:
			return s.Warning
		case state == whence.TablePending && s.awaits != "":
			return "its copy begins once the transactions have ended that were running when it was asked for: " + s.awaits +
				" on the source; pg_stat_activity and pg_prepared_xacts there tell more"
		}
	}
	return ""
}
