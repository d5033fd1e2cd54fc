// SPDX-License-Identifier: Apache-2.0

//go:build !captive

package main

// captive is for test builds only, which try there what captured code might.
func (in *instance) captive() {}

// namesExtra is nothing: only test builds of aldente-names are told more.
func namesExtra() string { return "" }

// unlessSkipped returns the filter's name. Only test builds leave any out.
func unlessSkipped(filter string) string { return filter }
