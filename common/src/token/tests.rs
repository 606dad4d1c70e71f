//! Tokens: golden text, mistakes of the hand, and secrecy.

use super::{EnrolToken, Fingerprint, TokenError};

fn token() -> EnrolToken {
    EnrolToken { secret: [0x5a; 32], authority: Fingerprint([0xc3; 32]) }
}

#[test]
fn golden_text() {
    let text = format!("hf1.{}.{}.3da7a44d", "5a".repeat(32), "c3".repeat(32));
    assert_eq!(token().to_text(), text);
    assert_eq!(format!(" {text}\n").parse(), Ok(token()));
}

#[test]
fn every_mistyped_character_is_noticed() {
    let text = token().to_text();
    for at in 4..text.len() {
        let mut wrong = text.clone().into_bytes();
        wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
        let wrong = String::from_utf8(wrong).unwrap();
        let error = wrong.parse::<EnrolToken>().unwrap_err();
        assert!(matches!(error, TokenError::Mistyped | TokenError::Form), "position {at}: {error}");
    }
    assert_eq!(text[..text.len() - 1].parse::<EnrolToken>(), Err(TokenError::Mistyped));
}

#[test]
fn other_texts_are_told_apart() {
    assert_eq!("".parse::<EnrolToken>(), Err(TokenError::Form));
    assert_eq!("hello.world".parse::<EnrolToken>(), Err(TokenError::Form));
    assert_eq!("hf2.00.00.00".parse::<EnrolToken>(), Err(TokenError::Newer));
}

#[test]
fn debug_output_has_no_secret() {
    assert!(!format!("{:?}", token()).contains("5a5a"));
}
