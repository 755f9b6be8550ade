package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/whence-db/whence/authz/internal/strict"
)

const (
	fetchTimeout  = 5 * time.Second // discovery and key set together
	maxDocument   = 256 << 10       // bytes
	maxIssuerKeys = 64
	discoveryPath = "/.well-known/openid-configuration"
)

// fetchKeys returns the usable keys of an issuer. Others of its keys (for
// encryption, of types that are not known here, too short) are passed over.
func fetchKeys(ctx context.Context, client *http.Client, i Issuer) ([]key, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	at := i.JWKSURL
	if at == "" {
		var err error
		if at, err = discover(ctx, client, i.URL); err != nil {
			return nil, fmt.Errorf("discover issuer: %w", err)
		}
	}
	b, err := fetchDocument(ctx, client, at)
	if err != nil {
		return nil, fmt.Errorf("fetch key set: %w", err)
	}
	raw, err := parseKeySet(b, maxIssuerKeys)
	if err != nil {
		return nil, fmt.Errorf("read key set: %w", err)
	}
	use, required := i.keyUse()
	keys := []key{}
	for _, one := range raw {
		if k, err := parseKey(one, use, required); err == nil {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// discover returns where an issuer says that its keys are (OpenID Connect
// Discovery 1.0, section 4).
func discover(ctx context.Context, client *http.Client, issuer string) (string, error) {
	b, err := fetchDocument(ctx, client, strings.TrimSuffix(issuer, "/")+discoveryPath)
	if err != nil {
		return "", err
	}
	members, err := strict.Members(b)
	if err != nil {
		return "", err
	}
	var said, at string
	if json.Unmarshal(members["issuer"], &said) != nil || said != issuer {
		return "", errors.New("the discovery document is another issuer's")
	}
	if json.Unmarshal(members["jwks_uri"], &at) != nil {
		return "", errors.New("the discovery document has no jwks_uri")
	}
	if err := checkURL(at, maxURL, true); err != nil {
		return "", fmt.Errorf("jwks_uri: %w", err)
	}
	// An issuer elsewhere must not send us to this machine's own services.
	if strings.HasPrefix(issuer, "https:") && !strings.HasPrefix(at, "https:") {
		return "", errors.New("jwks_uri: want https, as the issuer's own URL")
	}
	return at, nil
}

func fetchDocument(ctx context.Context, client *http.Client, at string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json, application/jwk-set+json")
	response, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d", at, response.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(response.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxDocument:
		return nil, fmt.Errorf("%s answered more than %d bytes", at, maxDocument)
	}
	return b, nil
}
