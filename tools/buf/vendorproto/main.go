// Command vendorproto prints the .proto files of other projects that the
// contract imports, as the Go modules that were generated from them describe
// them, so that generating needs no schema registry. The argument is the folder
// to write below; each file goes to its import path, with its module's licence
// beside it.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: vendorproto FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1], validate.File_buf_validate_validate_proto); err != nil {
		fmt.Fprintln(os.Stderr, "vendorproto:", err)
		os.Exit(1)
	}
}

func write(dir string, files ...protoreflect.FileDescriptor) error {
	printer := protoprint.Printer{SortElements: false}
	for _, f := range files {
		text, err := printer.PrintProtoToString(f)
		if err != nil {
			return fmt.Errorf("print %s: %w", f.Path(), err)
		}
		to := filepath.Join(dir, filepath.FromSlash(f.Path()))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
