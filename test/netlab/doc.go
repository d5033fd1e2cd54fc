// SPDX-License-Identifier: Apache-2.0

// Package netlab builds small networks out of network namespaces and runs
// programs in them: a "host" and a "remote" joined by a veth pair, a
// translator started on the host, and the namespace behind it, the guest.
//
// Namespaces have no names: they live as long as a descriptor or a process
// holds them, so that an aborted run leaves nothing behind and any number of
// runs go on side by side. All traffic stays inside them.
//
// A test binary that uses netlab calls [Main] from TestMain: it re-executes
// itself in a user namespace when it lacks privileges, and serves as the
// command that a guest runs.
package netlab

// TB is what netlab needs of *testing.T; the benchmark program has its own.
type TB interface {
	Helper()                           // as testing.TB
	Logf(format string, args ...any)   // as testing.TB
	Fatalf(format string, args ...any) // as testing.TB
	Cleanup(func())                    // as testing.TB
	Failed() bool                      // as testing.TB
	Name() string                      // as testing.TB
}
