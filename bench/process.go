package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usage is what a process has used.
type usage struct {
	cpu     time.Duration // user and system
	mallocs uint64
	bytes   uint64 // allocated, freed or not
}

func ownUsage() (usage, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return usage{}, err
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{time.Duration(r.Utime.Nano() + r.Stime.Nano()), m.Mallocs, m.TotalAlloc}, nil
}

func (u usage) since(before usage) usage {
	return usage{u.cpu - before.cpu, u.mallocs - before.mallocs, u.bytes - before.bytes}
}

// resetPeak lets peak resident memory of this process begin anew, as small as it
// can be.
func resetPeak() {
	debug.FreeOSMemory()
	resetPeakOf(os.Getpid())
}

// resetPeakOf lets a process's peak resident memory begin anew from what it has
// now; where the system cannot, the peak stays that of the process so far.
func resetPeakOf(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o200)
}

// residentMB reads how much memory a process has (VmRSS), or has had at most
// (VmHWM), in megabytes; zero where the system does not tell.
func residentMB(pid int, what string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); name == what && len(fields) > 0 {
			kb, _ := strconv.ParseFloat(fields[0], 64)
			return kb / 1024
		}
	}
	return 0
}
