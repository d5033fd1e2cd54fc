// SPDX-License-Identifier: Apache-2.0

package cli

// unsupported lists options that are understood but not carried out yet.
var unsupported = []struct {
	option string
	asked  func(*Config) bool
}{
	{"--repair-path", func(c *Config) bool { return c.RepairPath != "" && c.RepairPath != "none" }},
	{"--migrate-exit", func(c *Config) bool { return c.MigrateExit }},
	{"--migrate-no-linger", func(c *Config) bool { return c.MigrateNoLinger }},
}

// Unsupported returns an error naming the first option that was asked for and
// that this version can't carry out. Defaults don't count.
func (c *Config) Unsupported() error {
	for _, u := range unsupported {
		if u.asked(c) {
			return nextf("leave it out; LIMITATIONS in the manual page has the list", "%s is not supported by this version", u.option)
		}
	}
	return nil
}
