// SPDX-License-Identifier: Apache-2.0

package fork

import "unsafe"

// fromHeap is an address that the list does not know for one.
func fromHeap(p *byte) uintptr { return uintptr(unsafe.Pointer(p)) }
