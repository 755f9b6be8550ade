package federation

import (
	"errors"
	"strings"
)

const maxTrustDomain = 255 // bytes

var errSPIFFE = errors.New("not a SPIFFE ID")

// parseSPIFFE takes a SPIFFE ID apart, or a trust domain's, which has no path.
// There is one spelling for each (SPIFFE-ID, section 2): no percent signs, no
// empty or dot segments, no capitals in the trust domain.
func parseSPIFFE(id string) (domain, path string, err error) {
	rest, ok := strings.CutPrefix(id, spiffeScheme+"://")
	if !ok {
		return "", "", errSPIFFE
	}
	domain, path, hasPath := strings.Cut(rest, "/")
	if domain == "" || len(domain) > maxTrustDomain || strings.ContainsFunc(domain, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	}) {
		return "", "", errSPIFFE
	}
	if !hasPath {
		return domain, "", nil
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
		}) {
			return "", "", errSPIFFE
		}
	}
	return domain, "/" + path, nil
}
