//! Tokens: golden text, mistakes of the hand, and secrecy.

use super::{EnrolToken, Fingerprint, OperatorToken, TokenError};

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
        assert!(matches!(error, TokenError::Mistyped | TokenError::Form(_)), "position {at}: {error}");
    }
    assert_eq!(text[..text.len() - 1].parse::<EnrolToken>(), Err(TokenError::Mistyped));
}

#[test]
fn other_texts_are_told_apart() {
    assert_eq!("".parse::<EnrolToken>(), Err(TokenError::Form("hf1")));
    assert_eq!("hello.world".parse::<EnrolToken>(), Err(TokenError::Form("hf1")));
    assert_eq!("hf2.00.00.00".parse::<EnrolToken>(), Err(TokenError::Newer));
}

#[test]
fn an_operators_token_is_another() {
    let operator = OperatorToken { secret: [0x5a; 32], authority: Fingerprint([0xc3; 32]) };
    let text = format!("hfo1.{}.{}.64dfe9f7", "5a".repeat(32), "c3".repeat(32));
    assert_eq!(operator.to_text(), text);
    assert_eq!(text.parse(), Ok(operator.clone()));
    assert_eq!(text.parse::<EnrolToken>(), Err(TokenError::Purpose));
    assert_eq!(token().to_text().parse::<OperatorToken>(), Err(TokenError::Purpose));
    assert_eq!("hfo2.00.00.00".parse::<OperatorToken>(), Err(TokenError::Newer));
    assert!(!format!("{operator:?}").contains("5a5a"));
}

#[test]
fn debug_output_has_no_secret() {
    assert!(!format!("{:?}", token()).contains("5a5a"));
}
