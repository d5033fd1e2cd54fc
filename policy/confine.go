// SPDX-License-Identifier: Apache-2.0

package policy

// Confinement is what a process that opens sockets for others keeps once it is
// set up.
type Confinement struct {
	Filter       string       // Filter*; empty: none, which is reported
	Capabilities Capabilities // of those that it has
	Files        Paths        // that stay within reach
	EmptyRoot    bool         // the file system was emptied before, which is checked
}

// Apply puts up every layer, on all threads, and returns what is in force. The
// order is that of the worker's.
func (c *Confinement) Apply() (r Report) {
	if c.EmptyRoot {
		r.Add(CheckRoot())
	}
	r.Add(KeepCapabilities(c.Capabilities))
	r.Add(Limits(false, -1, 0))
	r.Add(NoNewPrivs())
	r.Add(NonDumpable())
	r.Add(DenyWriteExecute())
	r.Add(LandlockFiles(c.Files))
	if c.Filter == "" {
		r.Add(Layer{"seccomp", Missing, "not possible without namespaces for the worker"})
		return r
	}
	r.Add(Seccomp(c.Filter))
	return r
}
