package pgcluster

import (
	"io"
	"strings"
	"sync"
)

const tailSize = 8 << 10

// log passes on what a server writes and keeps the end of it, for errors.
type log struct {
	to io.Writer // may be nil

	mu   sync.Mutex // owns kept
	kept []byte
}

// copy reads until the last process that writes is gone. A writer that fails
// must not stop the server's output, which would block the server.
func (l *log) copy(from io.ReadCloser) {
	defer from.Close()
	_, _ = io.Copy(l, from)
}

func (l *log) Write(p []byte) (int, error) {
	if l.to != nil {
		_, _ = l.to.Write(p)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, p...)
	if over := len(l.kept) - tailSize; over > 0 {
		l.kept = append(l.kept[:0], l.kept[over:]...)
	}
	return len(p), nil
}

func (l *log) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.kept))
}
