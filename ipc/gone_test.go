// SPDX-License-Identifier: Apache-2.0

package ipc_test

import (
	"errors"
	"testing"

	. "aldente/ipc"
)

// TestGoneRanges: a Gone names as many addresses as it says, and no others.
func TestGoneRanges(t *testing.T) {
	all := [MaxGone][16]byte{}
	for i := range all {
		all[i][15] = byte(i + 1)
	}
	for name, tt := range map[string]struct {
		g    Gone
		good bool
	}{
		"all":          {Gone{MaxGone, all}, true},
		"none":         {Gone{}, false},
		"more":         {Gone{MaxGone + 1, all}, false},
		"one behind":   {Gone{MaxGone - 1, all}, false},
		"one left out": {Gone{2, [MaxGone][16]byte{1: {15: 1}}}, false},
		"one too few":  {Gone{2, [MaxGone][16]byte{{15: 1}}}, false},
	} {
		if err := new(Gone).Decode(tt.g.Encode()); (err == nil) != tt.good || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestConfigLeases: what is said of former addresses and leases has to fit together.
func TestConfigLeases(t *testing.T) {
	for name, tt := range map[string]struct {
		c    Config
		good bool
	}{
		"for ever":         {Config{}, true},
		"with an end":      {Config{Lease: 3600, Renew: 60, Kept4: 1<<MaxFormer - 1, Kept6: 1}, true},
		"never renewed":    {Config{Lease: 3600}, false},
		"renewed only":     {Config{Renew: 60}, false},
		"renewed too late": {Config{Lease: 60, Renew: 61}, false},
		"kept, beyond":     {Config{Kept4: 1 << MaxFormer}, false},
		"kept, beyond, 6":  {Config{Kept6: 1 << MaxFormer}, false},
	} {
		tt.c.LinkKind = LinkTap
		if err := new(Config).Decode(tt.c.Encode()); (err == nil) != tt.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
