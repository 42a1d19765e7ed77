#!/bin/sh
# Makes the certificates of the TLS tests: an authority, two certificates of the server, one of a
# client (SAN and CN acme), and one of a client that another authority signed. Good for a century;
# they let nobody in anywhere.
set -e
cd "$(dirname "$0")"
days=36500
authority() {
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
    openssl req -x509 -new -key "$1.key" -days $days -subj "/CN=$1" -out "$1.crt" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign"
}
leaf() { # name subject alternative-names authority usage
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1.key"
    openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\nbasicConstraints=CA:FALSE\n' "$3" "$5" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$4.crt" -CAkey "$4.key" -CAcreateserial -days $days \
        -extfile "$1.ext" -out "$1.crt"
    rm "$1.csr" "$1.ext"
}
authority ca
authority other-ca
leaf server /CN=first "DNS:localhost,IP:127.0.0.1" ca serverAuth
leaf renewed /CN=second "DNS:localhost,IP:127.0.0.1" ca serverAuth
leaf client /O=Umbrella/CN=acme "DNS:acme" ca clientAuth
leaf stranger /CN=acme "DNS:acme" other-ca clientAuth
rm -f ./*.srl ca.key other-ca.key other-ca.crt
