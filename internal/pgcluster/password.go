package pgcluster

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// loadPassword returns the superuser's password, making one up for a cluster
// that is yet to be created.
func loadPassword(dir string, initialised bool) (string, error) {
	path := filepath.Join(dir, "pg.password")
	text, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(text)) != "" {
		return strings.TrimSpace(string(text)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if initialised {
		return "", fmt.Errorf("%s is missing, and the cluster in %s cannot be entered without it", path, dir)
	}
	password := rand.Text()
	return password, os.WriteFile(path, []byte(password+"\n"), 0o600)
}
