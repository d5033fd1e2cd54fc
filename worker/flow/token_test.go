// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"testing"

	"pgregory.net/rapid"
)

func TestToken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Owner(rapid.Uint8().Draw(t, "owner"))
		gen, index := rapid.Uint32().Draw(t, "generation"), rapid.Uint32().Draw(t, "index")
		if o2, g2, i2 := SplitToken(Token(o, gen, index)); o2 != o || g2 != gen&0xffffff || i2 != index {
			t.Fatalf("%d %d %d", o2, g2, i2)
		}
	})
}
