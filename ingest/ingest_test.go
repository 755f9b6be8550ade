package ingest

import (
	"os"
	"testing"

	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(chaosChildEnv); text != "" {
		os.Exit(chaosChildMain(text))
	}
	os.Exit(pgtest.Main(m))
}
