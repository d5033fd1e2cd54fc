// SPDX-License-Identifier: Apache-2.0

package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestComments: each package says what it is, and each exported name what it is for.
func TestComments(t *testing.T) {
	documented := map[string]bool{} // folder: some file has a package comment
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains([]string{"build", "testdata", "vendor"}, d.Name()) || strings.HasPrefix(d.Name(), ".") && d.Name() != ".."):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || f.Doc.Text() != ""
		for _, name := range undocumented(files, f) {
			t.Errorf("%s: %s has no comment", files.Position(name.Pos()), name.Name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// undocumented returns the exported names of a file without a comment. A constant,
// variable or field may have it behind, or share that of its group. The fields of a
// structure of one line, and the methods String and Error, need none.
func undocumented(files *token.FileSet, f *ast.File) (names []*ast.Ident) {
	note := func(missing bool, all ...*ast.Ident) {
		for _, n := range all {
			if missing && n.IsExported() {
				names = append(names, n)
			}
		}
	}
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			note(d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv) && d.Name.Name != "String" && d.Name.Name != "Error"), d.Name)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					note(s.Doc == nil && s.Comment == nil && d.Doc == nil, s.Names...)
				case *ast.TypeSpec:
					note(s.Doc == nil && d.Doc == nil, s.Name)
					if s.Name.IsExported() && files.Position(s.Pos()).Line < files.Position(s.End()).Line {
						note(true, bareFields(s.Type)...)
					}
				}
			}
		}
	}
	return names
}

func exportedReceiver(l *ast.FieldList) bool {
	typ := l.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// bareFields are the fields of a structure, or methods of an interface, without a
// comment of their own.
func bareFields(typ ast.Expr) (names []*ast.Ident) {
	var list *ast.FieldList
	switch x := typ.(type) {
	case *ast.StructType:
		list = x.Fields
	case *ast.InterfaceType:
		list = x.Methods
	default:
		return nil
	}
	for _, f := range list.List {
		if f.Doc == nil && f.Comment == nil {
			names = append(names, f.Names...)
		}
	}
	return names
}
