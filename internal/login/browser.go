package login

import (
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/term"
)

// opener returns what shows a URL when out is a terminal and a browser can be had,
// or what does nothing.
func opener(out io.Writer) func(string) error {
	program, ok := browser(out)
	if !ok {
		return func(string) error { return nil }
	}
	return func(url string) error {
		cmd := exec.Command(program, url)                    //nolint:noctx // the browser outlives the sign-in
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // and a Ctrl-C meant for us
		if err := cmd.Start(); err != nil {
			return err
		}
		return cmd.Process.Release() // some desktops' xdg-open is the browser itself
	}
}

func browser(out io.Writer) (program string, ok bool) {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", false
	}
	name := "open"
	if runtime.GOOS != "darwin" {
		// Without a desktop, xdg-open would take over the terminal with a text browser.
		if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
			return "", false
		}
		name = "xdg-open"
	}
	program, err := exec.LookPath(name)
	return program, err == nil
}
