package smtplb

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/smtplb/smtplb/internal/discover"
	"github.com/smtplb/smtplb/internal/domain"
)

// Provider is an operator of mailboxes with many domains, for whose servers it is one sender whichever of them mail is for: limits are shared by all of them.
//
// Where a Provider has Limits, a message whose recipients are of several providers is sent to those of each apart, as it is by Routes, so that one that has to wait keeps nobody else waiting; with Envelope.RequireAll it waits for all of them.
type Provider struct {
	// Name says which provider is meant in errors and statistics.
	Name string
	// Domains are patterns of its domains, as in Route.Recipients, without addresses. Default: those that Providers knows of that Name. What is named here is this Provider's: one of those that every pool knows doesn't have it any more, its
	// Limits included. That two entries of Config.Providers name it is an error. Explain tells whose a recipient is.
	Domains []string
	// MXSuffixes are names of the hosts that take mail for it, or names above them, such as "google.com": with Config.MXResolver, domains that no Domains name are the provider's where each of the hosts in their MX records is
	// one of these. Default: those that Providers knows of that Name.
	MXSuffixes []string
	// Limits bound what goes to its domains, over all relays together. Default: nothing.
	Limits Limits

	_ struct{}
}

// Providers returns the mailbox providers that every pool knows: "gmail", "microsoft", "yahoo" and "apple", with the domains at which they offer mailboxes to the public.
// Domains of their customers are found by their MX records only, see Config.MXResolver.
func Providers() []Provider {
	list := slices.Clone(builtin)
	for i := range list {
		list[i].Domains = slices.Clone(list[i].Domains)
		list[i].MXSuffixes = slices.Clone(list[i].MXSuffixes)
	}
	return list
}

// The public domains of the built-in providers: Gmail https://support.google.com/mail/answer/56256 (googlemail.com is the same service); Microsoft's consumer domains are those that outlook.com offers, with the national ones of hotmail and live;
// Yahoo's with AOL, which it runs; Apple https://support.apple.com/102540. As of 2026-11.
//
// The hosts that take their mail: Google Workspace names smtp.google.com, before April 2023 aspmx.l.google.com with alt1 to alt4 and aspmx2 to aspmx5.googlemail.com (https://support.google.com/a/answer/174125);
// Microsoft 365 DOMAIN.mail.protection.outlook.com, since 2024 DOMAIN.RANDOM.mx.microsoft (https://learn.microsoft.com/purview/how-smtp-dane-works), and outlook.com's own are below olc.protection.outlook.com;
// Yahoo's and AOL's are below yahoodns.net; iCloud's custom domains have mx01 and mx02.mail.icloud.com (https://support.apple.com/102374). As of 2026-11.
var builtin = []Provider{
	{Name: "gmail", MXSuffixes: []string{"google.com", "googlemail.com"}, Domains: []string{"gmail.com", "googlemail.com"}},
	{Name: "microsoft", MXSuffixes: []string{"protection.outlook.com", "mx.microsoft"}, Domains: []string{
		"outlook.com", "hotmail.com", "live.com", "msn.com", "passport.com",
		"outlook.at", "outlook.be", "outlook.cl", "outlook.co.id", "outlook.co.il", "outlook.co.th", "outlook.com.ar", "outlook.com.au", "outlook.com.br", "outlook.com.gr", "outlook.com.tr", "outlook.com.vn",
		"outlook.cz", "outlook.de", "outlook.dk", "outlook.es", "outlook.fr", "outlook.hu", "outlook.ie", "outlook.in", "outlook.it", "outlook.jp", "outlook.kr", "outlook.lv", "outlook.my", "outlook.ph", "outlook.pt",
		"outlook.sa", "outlook.sg", "outlook.sk",
		"hotmail.be", "hotmail.ca", "hotmail.ch", "hotmail.cl", "hotmail.co.id", "hotmail.co.il", "hotmail.co.in", "hotmail.co.jp", "hotmail.co.kr", "hotmail.co.nz", "hotmail.co.th", "hotmail.co.uk", "hotmail.co.za",
		"hotmail.com.ar", "hotmail.com.au", "hotmail.com.br", "hotmail.com.hk", "hotmail.com.tr", "hotmail.com.tw", "hotmail.com.vn", "hotmail.cz", "hotmail.de", "hotmail.dk", "hotmail.es", "hotmail.fi", "hotmail.fr",
		"hotmail.gr", "hotmail.hu", "hotmail.it", "hotmail.lt", "hotmail.lv", "hotmail.my", "hotmail.nl", "hotmail.no", "hotmail.ph", "hotmail.rs", "hotmail.se", "hotmail.sg", "hotmail.sk",
		"live.at", "live.be", "live.ca", "live.ch", "live.cl", "live.cn", "live.co.in", "live.co.kr", "live.co.uk", "live.co.za", "live.com.ar", "live.com.au", "live.com.mx", "live.com.my", "live.com.ph", "live.com.pt",
		"live.com.sg", "live.de", "live.dk", "live.fi", "live.fr", "live.hk", "live.ie", "live.in", "live.it", "live.jp", "live.nl", "live.no", "live.ru", "live.se",
	}},
	{Name: "yahoo", MXSuffixes: []string{"yahoodns.net"}, Domains: []string{
		"yahoo.com", "ymail.com", "rocketmail.com", "myyahoo.com", "yahoo.ca", "yahoo.co.id", "yahoo.co.in", "yahoo.co.nz", "yahoo.co.th", "yahoo.co.uk", "yahoo.co.za", "yahoo.com.ar", "yahoo.com.au",
		"yahoo.com.br", "yahoo.com.co", "yahoo.com.hk", "yahoo.com.mx", "yahoo.com.my", "yahoo.com.pe", "yahoo.com.ph", "yahoo.com.sg", "yahoo.com.tr", "yahoo.com.tw", "yahoo.com.ve", "yahoo.com.vn",
		"yahoo.de", "yahoo.dk", "yahoo.es", "yahoo.fi", "yahoo.fr", "yahoo.gr", "yahoo.ie", "yahoo.in", "yahoo.it", "yahoo.nl", "yahoo.no", "yahoo.pl", "yahoo.ro", "yahoo.se",
		"aol.com", "aim.com", "aol.co.uk", "aol.de", "aol.fr", "verizon.net",
	}},
	{Name: "apple", MXSuffixes: []string{"mail.icloud.com"}, Domains: []string{"icloud.com", "me.com", "mac.com", "privaterelay.appleid.com"}},
}

// provider is a Provider at work.
type provider struct {
	*Provider
	meter *meter // nil: no limits
}

// limited returns its meter; nil where there is none, or no provider.
func (p *provider) limited() *meter {
	if p == nil {
		return nil
	}
	return p.meter
}

// providerOf returns the provider of a recipient, nil where none is known.
func (f *fleet) providerOf(x *recipient) *provider {
	if i, ok := f.config.domains.Lookup(x.addr, domain.NullSender, ""); ok {
		return f.providers[i]
	}
	if x.operator == "" {
		return nil
	}
	return f.operators[x.operator]
}

// provider is the name of the provider that all of d's pending recipients have in common, "" where there is none.
func (d *delivery) provider() string {
	var common *provider
	for i := range d.rcpts {
		if x := &d.rcpts[i]; x.outcome == 0 {
			p := d.fleet.providerOf(x)
			if p == nil || common != nil && p != common {
				return ""
			}
			common = p
		}
	}
	if common == nil {
		return ""
	}
	return common.Name
}

// suffixesOf returns whose the hosts below the providers' MXSuffixes are.
func suffixesOf(list []Provider) discover.Suffixes {
	s := make(discover.Suffixes)
	for i := range list {
		for _, name := range list[i].MXSuffixes {
			s[name] = list[i].Name
		}
	}
	return s
}

// validateSuffixes returns the suffixes as they are compared, and adds their faults to f. whose is whose they are so far.
func (p *Provider) validateSuffixes(path string, whose map[string]int, number int, f *faults) (list []string) {
	for n, s := range p.MXSuffixes {
		at := fmt.Sprintf("%s.MXSuffixes[%d]", path, n)
		name, err := domain.ToASCII(strings.TrimPrefix(s, "."))
		switch {
		case err != nil:
			f.add(at, "%v", err)
			continue
		case !strings.Contains(name, "."):
			f.add(at, "%q would be all hosts of a top-level domain", s)
			continue
		}
		name = strings.TrimSuffix(domain.Fold(name), ".")
		if same, ok := whose[name]; ok {
			f.add(at, "%q is one of Providers[%d] too", s, same)
		}
		whose[name] = number
		list = append(list, name)
	}
	return list
}

// builtinTable is the table of the built-in providers.
var builtinTable = sync.OnceValue(func() *domain.Table {
	table, _ := domain.NewTable(providerRules(builtin))
	return table
})

func providerRules(list []Provider) (rules []domain.Rule) {
	for i := range list {
		for _, d := range list[i].Domains {
			rules = append(rules, domain.Rule{Recipient: d, Sender: "*", Value: int32(i)})
		}
	}
	return rules
}

// canonicalPattern is a pattern of a domain in the form in which all that mean the same are one.
func canonicalPattern(d string) string {
	if name, ok := strings.CutPrefix(d, "*."); ok {
		return "*." + domain.Fold(name)
	}
	return domain.Fold(d)
}

// validateProviders adds the faults of the providers to f, and returns them together with the built-in ones, and the table of their domains.
func (c *Config) validateProviders(f *faults) ([]Provider, *domain.Table) {
	if len(c.Providers) == 0 {
		return builtin, builtinTable()
	}
	list := slices.Clone(builtin)
	type place struct{ provider, domain int }
	places := map[string]place{}
	names, suffixes := map[string]int{}, map[string]int{}
	for i := range c.Providers {
		p, path := c.Providers[i], fmt.Sprintf("Providers[%d]", i)
		p.Domains = slices.Clone(p.Domains)
		p.MXSuffixes = p.validateSuffixes(path, suffixes, i, f)
		if first, ok := names[p.Name]; ok {
			f.add(path+".Name", "%q is the name of Providers[%d] too", p.Name, first)
			continue
		}
		names[p.Name] = i
		if p.Name == "" || strings.ContainsFunc(p.Name, isControl) || len(p.Name) > 255 {
			f.add(path+".Name", "is empty, has control characters, or more than 255 bytes")
		}
		p.Limits.validate(path+".Limits", scopeProvider, f)
		for n, d := range p.Domains {
			at := fmt.Sprintf("%s.Domains[%d]", path, n)
			if d == "" || d == "*" || strings.ContainsRune(d, '@') {
				f.add(at, "%q is no domain", d)
				continue
			}
			if _, wrong := domain.NewTable([]domain.Rule{{Recipient: d, Sender: "*"}}); len(wrong) > 0 {
				f.add(at, "%s", wrong[0].Reason)
				continue
			}
			key := canonicalPattern(d)
			if same, ok := places[key]; ok {
				f.add(at, "%q is one of Providers[%d] too", d, same.provider)
			}
			places[key] = place{i, n}
		}
		known := slices.IndexFunc(list, func(b Provider) bool { return b.Name == p.Name })
		if known >= 0 && c.Providers[i].MXSuffixes == nil {
			p.MXSuffixes = list[known].MXSuffixes
		}
		switch {
		case known >= 0 && p.Domains == nil:
			list[known].Limits, list[known].MXSuffixes = p.Limits, p.MXSuffixes
		case known >= 0:
			list[known] = p
		case len(p.Domains) == 0 && len(c.Providers[i].MXSuffixes) == 0:
			f.add(path+".Domains", "is empty, and no provider of that name is known")
		case len(p.Domains) == 0 && c.MXResolver == nil:
			f.add(path+".MXSuffixes", "goes with an MXResolver, where there are no Domains")
		default:
			list = append(list, p)
		}
	}
	for i := range builtin { // a domain that an entry claims is no longer another's
		if _, ok := names[list[i].Name]; !ok || len(list[i].Domains) == len(builtin[i].Domains) {
			list[i].Domains = slices.DeleteFunc(slices.Clone(list[i].Domains), func(d string) bool {
				at, ok := places[d]
				return ok && c.Providers[at.provider].Name != list[i].Name
			})
		}
	}
	for i := range builtin { // and so is a suffix
		list[i].MXSuffixes = slices.DeleteFunc(slices.Clone(list[i].MXSuffixes), func(s string) bool {
			n, ok := suffixes[s]
			return ok && c.Providers[n].Name != list[i].Name
		})
	}
	table, _ := domain.NewTable(providerRules(list))
	return list, table
}
