package smtplb_test

import (
	"bytes"
	"encoding/json"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module      = "github.com/smtplb/smtplb"
	goMail      = "github.com/wneessen/go-mail"
	gobreaker   = "github.com/sony/gobreaker/v2"
	xTime       = "golang.org/x/time"
	xNet        = "golang.org/x/net"
	xNetIDNA    = "golang.org/x/net/idna"
	goCmp       = "github.com/google/go-cmp"
	conformance = "smtptest/conformance"
	maxLines    = 700
	onlyStd     = "%s imports %s; it may import the standard library alone"
	onlyHere    = "%s imports %s, which only %s may"
	noInternal  = "%s imports %s: inside of internal there is no importing of siblings or the root"
)

// TestImports holds the rules of who may import whom: only the root composes, and
// each third party stays in few hands. It reads the files of every platform.
func TestImports(t *testing.T) {
	siblings := map[string]string{ // what internal packages may import all the same
		"internal/session": "internal/reply",
		"internal/verdict": "internal/reply",
		"internal/backoff": "internal/reply",
	}
	thirdParties := map[string][]string{ // by package or module; "." is the root
		gobreaker: {"internal/breaker"},
		xNetIDNA:  {"internal/domain"},
		xTime:     {"internal/throttle"},
		goMail:    {".", "internal/session", "examples", conformance}, // conformance: its tests
	}
	standard := []string{"internal/discover", "internal/warmup"} // import nothing but the standard library, outside of their tests
	for _, p := range listPackages(t) {
		rel, ok := strings.CutPrefix(p.ImportPath, module+"/")
		if !ok {
			rel = "."
		}
		for _, imp := range p.imports(t) {
			own, isOwn := strings.CutPrefix(imp.path, module)
			own = strings.TrimPrefix(own, "/")
			if first, _, _ := strings.Cut(imp.path, "/"); strings.Contains(first, ".") && !imp.test && slices.Contains(standard, rel) {
				t.Errorf(onlyStd, rel, imp.path)
			}
			if isOwn && !imp.test {
				switch {
				case strings.HasPrefix(rel, "internal/") && own != rel && siblings[rel] != own:
					t.Errorf(noInternal, rel, imp.path)
				case rel == conformance && own != "smtptest":
					t.Errorf("%s imports %s; of this module it may import smtptest alone", rel, imp.path)
				case rel == "balancertest" && own != "":
					t.Errorf("balancertest imports %s; of this module it may import the root alone, as anybody can", imp.path)
				case rel == "smtptest" && own != "internal/memnet":
					t.Errorf("smtptest imports %s; of this module it may import internal/memnet alone", imp.path)
				case strings.HasPrefix(rel, "examples/") && strings.HasPrefix(own, "internal/"):
					t.Errorf("%s imports %s, which no user can", rel, imp.path)
				}
				continue
			}
			if strings.HasPrefix(imp.path, xNet+"/") && imp.path != xNetIDNA {
				t.Errorf("%s imports %s; of x/net only idna is used", rel, imp.path)
			}
			if rel == conformance && !imp.test && within(imp.path, goMail) {
				t.Errorf("%s imports %s outside of its tests", rel, imp.path)
			}
			for third, where := range thirdParties {
				if within(imp.path, third) && !slices.ContainsFunc(where, func(w string) bool {
					return within(rel, w)
				}) {
					t.Errorf(onlyHere, rel, imp.path, strings.Join(where, ", "))
				}
			}
		}
	}
}

// TestRequirements bounds what the module's users download.
func TestRequirements(t *testing.T) {
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	decode(t, goCommand(t, "mod", "edit", "-json"), &mod)
	for _, r := range mod.Require {
		if !r.Indirect && !slices.Contains([]string{goMail, gobreaker, xTime, xNet, goCmp}, r.Path) {
			t.Errorf("go.mod requires %s", r.Path)
		}
	}
}

// TestExportedTypes looks at every type in the exported API: they are the
// standard library's or the package's own, and go-mail's in Send and NewEnvelope.
func TestExportedTypes(t *testing.T) {
	exports := map[string]string{}
	var targets []string
	for _, p := range decodeAll(t, goCommand(t, "list", "-export", "-deps", "-json=ImportPath,Export,Name", ".", "./smtptest", "./balancertest", "./"+conformance)) {
		exports[p.ImportPath] = p.Export
		if p.ImportPath == module || p.ImportPath == module+"/smtptest" || p.ImportPath == module+"/balancertest" || p.ImportPath == module+"/"+conformance {
			targets = append(targets, p.ImportPath)
		}
	}
	imp := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for _, target := range targets {
		pkg, err := imp.Import(target)
		if err != nil {
			t.Fatal(err)
		}
		w := apiWalker{own: target, seen: map[*types.TypeName]bool{}, foreign: map[string]bool{}}
		for _, name := range pkg.Scope().Names() {
			if obj := pkg.Scope().Lookup(name); obj.Exported() {
				w.object(pkg.Name()+"."+name, obj)
			}
		}
		for use := range w.foreign {
			switch use {
			case "smtplb.Pool.Send: " + goMail, "smtplb.NewEnvelope: " + goMail:
			case "balancertest.Run: " + module, "balancertest.Check: " + module: // what they test
			default:
				t.Errorf("in the exported API, %s", use)
			}
		}
	}
}

// TestFileLength keeps files readable: one that wants more wants a second room.
func TestFileLength(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != "." && strings.HasPrefix(e.Name(), ".") {
			return filepath.SkipDir
		}
		if e.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		b, err := os.ReadFile(path)
		if n := bytes.Count(b, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d", path, n, maxLines)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// apiWalker visits the types that users of a package can get at.
type apiWalker struct {
	own     string
	seen    map[*types.TypeName]bool
	foreign map[string]bool // "where: package", of packages outside the standard library and own
}

func (w *apiWalker) object(where string, obj types.Object) {
	if tn, ok := obj.(*types.TypeName); ok && tn.IsAlias() {
		w.typ(where, types.Unalias(tn.Type()))
		return
	}
	w.typ(where, obj.Type())
}

func (w *apiWalker) typ(where string, typ types.Type) {
	switch typ := typ.(type) {
	case *types.Alias:
		w.typ(where, types.Unalias(typ))
	case *types.Named:
		w.named(where, typ)
	case *types.Pointer:
		w.typ(where, typ.Elem())
	case *types.Slice:
		w.typ(where, typ.Elem())
	case *types.Array:
		w.typ(where, typ.Elem())
	case *types.Chan:
		w.typ(where, typ.Elem())
	case *types.Map:
		w.typ(where, typ.Key())
		w.typ(where, typ.Elem())
	case *types.Tuple:
		for v := range typ.Variables() {
			w.typ(where, v.Type())
		}
	case *types.Signature:
		w.typ(where, typ.Params())
		w.typ(where, typ.Results())
	case *types.Struct:
		for f := range typ.Fields() {
			if f.Exported() || f.Embedded() {
				w.typ(where+"."+f.Name(), f.Type())
			}
		}
	case *types.Interface:
		for e := range typ.EmbeddedTypes() {
			w.typ(where, e)
		}
		for m := range typ.ExplicitMethods() {
			if m.Exported() {
				w.typ(where+"."+m.Name(), m.Type())
			}
		}
	case *types.Union:
		for term := range typ.Terms() {
			w.typ(where, term.Type())
		}
	case *types.TypeParam:
		w.typ(where, typ.Constraint())
	}
}

func (w *apiWalker) named(where string, typ *types.Named) {
	for arg := range typ.TypeArgs().Types() {
		w.typ(where, arg)
	}
	obj := typ.Obj()
	if obj.Pkg() == nil { // error, comparable
		return
	}
	if p := obj.Pkg().Path(); p != w.own {
		if first, _, _ := strings.Cut(p, "/"); strings.Contains(first, ".") {
			w.foreign[where+": "+p] = true
		}
		return
	}
	if w.seen[obj] {
		return
	}
	w.seen[obj] = true
	here := path.Base(w.own) + "." + obj.Name()
	for p := range typ.TypeParams().TypeParams() {
		w.typ(here, p)
	}
	w.typ(here, typ.Underlying())
	for m := range typ.Methods() {
		if m.Exported() {
			w.typ(here+"."+m.Name(), m.Type())
		}
	}
}

type listedPackage struct {
	ImportPath, Dir, Export string

	GoFiles, CgoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles []string
}

type listedImport struct {
	path string
	test bool
}

// imports reads the files themselves: go list knows those of this platform only.
func (p *listedPackage) imports(t *testing.T) []listedImport {
	t.Helper()
	var all []listedImport
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, listedImport{imported, strings.HasSuffix(name, "_test.go")})
		}
	}
	return all
}

func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	const fields = "-json=ImportPath,Dir,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles"
	pkgs := decodeAll(t, goCommand(t, "list", fields, "./..."))
	if len(pkgs) == 0 || pkgs[0].ImportPath != module {
		t.Fatalf("go list ./... found %d packages, and not %s first", len(pkgs), module)
	}
	return pkgs
}

func goCommand(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// decodeAll decodes a stream of JSON objects.
func decodeAll(t *testing.T, b []byte) []listedPackage {
	t.Helper()
	var all []listedPackage
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var p listedPackage
		switch err := d.Decode(&p); err {
		case nil:
			all = append(all, p)
		case io.EOF:
			return all
		default:
			t.Fatalf("go list: %v", err)
		}
	}
}

// within reports whether p is the path parent or below it.
func within(p, parent string) bool { return p == parent || strings.HasPrefix(p, parent+"/") }
