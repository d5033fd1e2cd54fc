// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"os/user"
	"strconv"
	"strings"
)

// parseRunAs reads UID, UID:GID, LOGIN or LOGIN:GROUP. Without a group, the
// user's primary one is taken; a UID that the user database does not know then
// has none, which is an error rather than a guess.
func parseRunAs(s string) (*IDs, error) {
	login, group, grouped := strings.Cut(s, ":")
	var ids IDs
	uid, known := parseID(login)
	var u *user.User
	var err error
	if known {
		u, err = user.LookupId(strconv.FormatUint(uint64(uid), 10))
	} else {
		u, err = user.Lookup(login)
	}
	switch {
	case err == nil:
		var ok1, ok2 bool
		ids.UID, ok1 = parseID(u.Uid)
		ids.GID, ok2 = parseID(u.Gid)
		if !ok1 || !ok2 {
			return nil, usagef("Invalid --runas option: %s", s)
		}
	case known && grouped:
		ids.UID = uid
	case known:
		return nil, usagef("Invalid --runas option: %s: no group known for this UID, give UID:GID", s)
	default:
		return nil, usagef("Invalid --runas option: %s: no such user", s)
	}
	if !grouped {
		return &ids, nil
	}
	if gid, ok := parseID(group); ok {
		ids.GID = gid
		return &ids, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return nil, usagef("Invalid --runas option: %s: no such group", s)
	}
	gid, ok := parseID(g.Gid)
	if !ok {
		return nil, usagef("Invalid --runas option: %s", s)
	}
	ids.GID = gid
	return &ids, nil
}

// parseID reads a user or group ID. The highest number means "no change" to
// the kernel and is none.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

func isRange(err error) bool { return errors.Is(err, strconv.ErrRange) }
