// SPDX-License-Identifier: Apache-2.0

// Package fuzz is what fuzz targets share: seeds from captures of real clients,
// dictionaries, a mutator that puts lengths and checksums right, and a verifier
// of frames. The targets stand beside the code that they test; README.md here
// lists them.
//
// Nothing of the project is imported, so that what is computed here is a second
// opinion, written plainly, on what the worker computes fast. Only tests import
// this package.
package fuzz
