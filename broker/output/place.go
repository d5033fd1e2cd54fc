// SPDX-License-Identifier: Apache-2.0

package output

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Place is where a file is that may have to be removed again. It is known by its
// directory, not by its path: another user could have put a link into that
// since, and it could be relative to a directory that is not the current one any
// more.
type Place struct {
	dir      int
	name     string
	dev, ino uint64
}

// PlaceOf returns the place of the file that st is about and that is at path now.
func PlaceOf(path string, st *unix.Stat_t) (*Place, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p := &Place{dir: dir, name: filepath.Base(path), dev: uint64(st.Dev), ino: st.Ino}
	if !p.holds() {
		p.Close()
		return nil, unix.ESTALE
	}
	return p, nil
}

// holds tells whether the file is still there.
func (p *Place) holds() bool {
	var st unix.Stat_t
	return unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && uint64(st.Dev) == p.dev && st.Ino == p.ino
}

// Remove removes the file, if it is still there, and closes the place. The file has to
// be open, or in use otherwise: its number could be another's else.
func (p *Place) Remove() {
	if p.holds() {
		_ = unix.Unlinkat(p.dir, p.name, 0)
	}
	p.Close()
}

// Close leaves the file where it is.
func (p *Place) Close() { unix.Close(p.dir) }
