// SPDX-License-Identifier: Apache-2.0

package egress

// Check says what is wrong with the destination of a rule, without the option's name.
func Check(dest string) error {
	_, err := parse(dest)
	return err
}
