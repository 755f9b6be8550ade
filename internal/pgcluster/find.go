package pgcluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
)

// BinEnv names the environment variable that overrides where the server
// programs are looked for.
const BinEnv = "WHENCE_PG_BIN"

var errNoServer = errors.New("no PostgreSQL server programs (initdb, postgres) with the extension pgvector were found: " +
	"run `make setup`, or set " + BinEnv + " to the folder that holds them")

// FindBin returns the folder of the server programs to use: $WHENCE_PG_BIN when
// it is set, else the newest installed server with pgvector beside it, from
// Debian's folders, PATH and Homebrew's.
func FindBin() (string, error) {
	if dir := os.Getenv(BinEnv); dir != "" {
		if !hasServer(dir) {
			return "", fmt.Errorf("%s=%s: no initdb and postgres in this folder", BinEnv, dir)
		}
		return dir, nil
	}
	dirs := newestFirst("/usr/lib/postgresql/*/bin")
	if path, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	if runtime.GOOS == "darwin" {
		dirs = append(dirs, newestFirst("/opt/homebrew/opt/postgresql@*/bin")...)
		dirs = append(dirs, newestFirst("/usr/local/opt/postgresql@*/bin")...)
	}
	for _, dir := range dirs {
		if hasServer(dir) && hasVector(dir) {
			return dir, nil
		}
	}
	return "", errNoServer
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// hasVector looks where the server itself will look for its extensions.
func hasVector(bin string) bool {
	shares := []string{
		filepath.Join("/usr/share/postgresql", filepath.Base(filepath.Dir(bin))),
		filepath.Join(bin, "../share/postgresql"),
		filepath.Join(bin, "../share"),
	}
	pgConfig := exec.Command(filepath.Join(bin, "pg_config"), "--sharedir") //nolint:noctx // it prints a line and ends
	if out, err := pgConfig.Output(); err == nil {
		shares = append(shares, string(trimNewline(out)))
	}
	return slices.ContainsFunc(shares, func(share string) bool {
		_, err := os.Stat(filepath.Join(share, "extension", "vector.control"))
		return err == nil
	})
}

func trimNewline(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}

var majorVersion = regexp.MustCompile(`(\d+)/bin$`)

// newestFirst orders the folders that match pattern by the major version in
// their names.
func newestFirst(pattern string) []string {
	dirs, _ := filepath.Glob(pattern) // the only error is a bad pattern
	version := func(dir string) int {
		m := majorVersion.FindStringSubmatch(dir)
		if m == nil {
			return 0
		}
		n, _ := strconv.Atoi(m[1])
		return n
	}
	slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	return dirs
}
