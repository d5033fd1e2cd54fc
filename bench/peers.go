// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"

	"aldente/bench/peers"
)

// fetchPeers fetches the peers that were not given.
func fetchPeers(o *options) error {
	dir, err := peers.Fetch(o.cache)
	if err != nil {
		return err
	}
	if o.pasta == "" {
		o.pasta = filepath.Join(dir, "pasta")
	}
	if o.slirp == "" {
		o.slirp = filepath.Join(dir, "slirp4netns")
	}
	return nil
}
